"""The protocol of an engine, and how one is made from the config.

An engine of your own is a class with these methods, named in the config as
`teacher.engine: package.module:Class`; docs/extending.md has an example.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from llkd.config.plugins import imported_class
from llkd.config.run import TaskConfig, TeacherConfig
from llkd.store.model_files import require_model, require_weights


@dataclass(frozen=True)
class LabelBatch:
    """What an engine says of N texts, over C labels in the order of `task.labels`."""

    logprobs_nc: np.ndarray
    """Raw log-probability of each label given the prompt, float32, shape (N, C). Rows of refused
    texts hold anything."""
    refused: dict[int, str] = field(default_factory=dict)
    """Index of each text that the engine could not label, with the reason."""
    tokens: int | None = None
    """Of all prompts, those of a beginning that was computed once among them; None where the
    engine does not know."""


class Engine(Protocol):
    """A loaded teacher.

    A class may say more of itself by two attributes: `concurrent = True` if `label` can be called
    from several threads at once, so that one shard's prompts are made while the model answers
    another's; `by_id = True` if the row's identifier decides, and not its text.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        """Load the model. What is raised beside errors of LLKD ends the actor, and is tried again
        up to `teacher.max_actor_failures` times.

        Raises:
            TeacherError: it cannot be loaded, or cannot express the labels.
        """

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """Score every label for every text.

        Args:
            texts: N texts.
            ids: the caller's identifier of each; None where the corpus has none.
            progress: to be called with the texts done so far.
        """


_OURS = {
    "vllm": "llkd.teacher.engines.vllm:VLLMEngine",
    "transformers": "llkd.teacher.engines.transformers:TransformersEngine",
    "openai": "llkd.teacher.engines.openai:OpenAIEngine",
    "table": "llkd.teacher.engines.table:TableEngine",
}


def engine_class(name: str) -> type[Engine]:
    """The class of `teacher.engine`.

    Raises:
        ConfigError: there is no such module or class.
    """
    return cast(type[Engine], imported_class(_OURS.get(name, name), "teacher.engine"))


def require_teacher(teacher: TeacherConfig) -> None:
    """See that the directories of a model that runs here hold all that is read of them.

    Raises:
        ConfigError: naming what is missing or damaged.
    """
    if teacher.engine not in ("vllm", "transformers"):
        return
    if not {"load_format", "gguf_file"} & teacher.engine_args.keys():
        require_model(teacher.model, "teacher.model")
    if teacher.lora is not None:
        require_weights(teacher.lora, "teacher.lora")
