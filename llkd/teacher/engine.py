"""The engine protocol, and the engines that the config can name.

A custom engine is a class with these methods, named in the config as
`teacher.engine: package.module:Class`; docs/extending.md has an example.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from pydantic import BaseModel, ValidationError

from llkd.config.explain import explained
from llkd.config.plugins import imported_class
from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import ConfigError, TeacherError
from llkd.store.model_files import require_model, require_weights


@dataclass(frozen=True)
class LabelBatch:
    """An engine's output for N texts and C labels, in the order of `task.labels`."""

    logprobs_nc: np.ndarray
    """Raw log-probability of each label given the prompt, float32, shape (N, C). Rows of refused
    texts are undefined."""
    refused: dict[int, str] = field(default_factory=dict)
    """The reason for each text that the engine could not label, by index."""
    tokens: int | None = None
    """Total prompt tokens, including those of cached prefixes; None if unknown."""


class Engine(Protocol):
    """A loaded teacher.

    A class may set two optional attributes: `concurrent = True` if `label` may be called from
    several threads at once, so that one shard is prepared while the model answers another;
    `by_id = True` if the label depends on the row's identifier, not on its text.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        """Load the model. Any exception other than an LLKDError ends the actor; it is restarted
        up to `teacher.max_actor_failures` times.

        Raises:
            TeacherError: the model cannot be loaded, or cannot express the labels.
        """

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """Score every label for every text.

        Args:
            texts: N texts.
            ids: the user's identifier of each text; None if the corpus has none.
            progress: call it with the number of texts done so far.
        """


Arguments = TypeVar("Arguments", bound=BaseModel)


def parse_arguments(kind: type[Arguments], teacher: TeacherConfig, engine: str) -> Arguments:
    """`teacher.engine_args`, validated.

    Raises:
        ConfigError: an argument is unknown or invalid; the message names `engine`.
    """
    try:
        return kind.model_validate(teacher.engine_args)
    except ValidationError as error:
        problems = "\n  ".join(explained(kind, error))
        raise ConfigError(f"teacher.engine_args of the {engine}:\n  {problems}") from None


def require_label_mass(teacher: TeacherConfig, logprobs_nc: np.ndarray) -> None:
    """Check that the teacher answers with the labels.

    Args:
        teacher: its config.
        logprobs_nc: see LabelBatch, of labelled rows, shape (N, C), N at least 1.

    Raises:
        TeacherError: it gives them less than `teacher.min_label_mass` of its probability.
    """
    mass = float(np.exp(logprobs_nc.astype(np.float64)).sum(axis=1).mean())
    if mass < teacher.min_label_mass:
        raise TeacherError(
            f"{teacher.model} gives the labels {mass:.2g} of its probability, less than teacher.min_label_mass "
            f"({teacher.min_label_mass:g}): it begins its answer with something else",
            "Look at the prompt with jobs/plan.py; then turn thinking off by teacher.chat_template_kwargs, try the "
            "other teacher.prompt_format, give examples, or lower teacher.min_label_mass.",
        )


_OURS = {
    "vllm": "llkd.teacher.engines.vllm:VLLMEngine",
    "transformers": "llkd.teacher.engines.transformers:TransformersEngine",
    "openai": "llkd.teacher.engines.openai:OpenAIEngine",
    "table": "llkd.teacher.engines.table:TableEngine",
}


def engine_class(name: str) -> type[Engine]:
    """The class of `teacher.engine`.

    Raises:
        ConfigError: the module or class does not exist.
    """
    return cast(type[Engine], imported_class(_OURS.get(name, name), "teacher.engine"))


def require_teacher(teacher: TeacherConfig) -> None:
    """Check that the local directories of a teacher are complete, for engines that load models.

    Raises:
        ConfigError: a file is missing or damaged; names it.
    """
    if teacher.engine not in ("vllm", "transformers"):
        return
    if not {"load_format", "gguf_file"} & teacher.engine_args.keys():
        require_model(teacher.model, "teacher.model")
    if teacher.lora is not None:
        require_weights(teacher.lora, "teacher.lora")
