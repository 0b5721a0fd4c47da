"""All settings of a run, validated once and frozen.

The docstring under each field is its documentation.
"""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llkd.config.outputs import ExportConfig, TrackingConfig
from llkd.config.parallelism import check_nodes
from llkd.config.plan import PlanConfig
from llkd.config.section import (
    Directory,
    Fraction,
    ModelName,
    ModelPath,
    Paths,
    Positive,
    Replicas,
    Section,
    absolute_path,
    check_no_secrets,
    check_replicas,
    control_characters,
)
from llkd.config.selection import CheapConfig, LabelConfig, SelectionConfig
from llkd.config.sources import (
    PREDICT,
    CorpusConfig,
    GoldConfig,
    PredictConfig,
    SourceConfig,
    TestConfig,
    section_of,
)
from llkd.config.student import StudentConfig

ENGINES = ("vllm", "transformers", "openai", "table")
"""The built-in teacher engines."""

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
"""URI schemes of the object stores and file systems that pyarrow supports."""


def _label_name(name: str) -> str:
    if not name.strip():
        raise ValueError("a label name must not be empty")
    if name != name.strip():
        raise ValueError(f"label name {name!r} has leading or trailing white space")
    if control_characters(name):
        raise ValueError(f"label name {name!r} contains a line break or another control character")
    return name


def _run_dir(path: str) -> str:
    scheme, separator, _ = path.partition("://")
    if separator and scheme not in SCHEMES:
        raise ValueError(f"must be a directory or a URI of {', '.join(SCHEMES)}")
    for folder, maker in (("compare", "jobs/compare.py"), ("rounds", "labelling in rounds")):
        if path.rstrip("/").split("/")[-2:-1] == [folder]:
            raise ValueError(f"must not be in a folder named {folder}: {maker} creates runs there")
    return path


def _iso_date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"must be a date such as '2026-01-31', not {text!r}") from None


def _labels_as_mapping(value: Any) -> Any:
    """Convert a list of names to a mapping without descriptions."""
    if isinstance(value, list):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"label {name!r} is not text; put quotes around it")
        if len(set(value)) < len(value):
            raise ValueError("label names must be distinct")
        return dict.fromkeys(value)
    return value


LabelName = Annotated[str, AfterValidator(_label_name)]


class Example(Section):
    """One worked example in the teacher's prompt."""

    text: Annotated[str, Field(min_length=1)]
    """The text of the example."""
    label: str
    """Its label, one of `task.labels`."""


class ExamplesConfig(Section):
    """Worked examples taken from a labelled file."""

    path: Paths
    """Labelled rows, in any form that `corpus.path` accepts."""
    text_column: str = "text"
    """The column that holds the text."""
    label_column: str = "label"
    """The column that holds the label, one of `task.labels`."""
    choose: Literal["seed", "nearest"] = "seed"
    """`seed` draws the same examples for all texts. `nearest` chooses for each text the examples
    with the nearest embeddings; the prompts then share a shorter prefix, so less of them is
    computed only once."""
    per_class: Annotated[int, Field(ge=1)] = 1
    """For `seed`: examples per label."""
    nearest: Annotated[int, Field(ge=1)] = 4
    """For `nearest`: examples per text."""
    embedder: ModelPath | None = None
    """For `nearest`: the encoder, a directory or a hub name; the embedding is its mean hidden
    state."""

    @model_validator(mode="after")
    def _check(self) -> "ExamplesConfig":
        check_no_secrets({"path": self.path, "embedder": self.embedder})
        if self.choose == "nearest" and self.embedder is None:
            raise ValueError("choose nearest needs an embedder, such as the student's model")
        return self


class TaskConfig(Section):
    """The labelling task."""

    instruction: Annotated[str, Field(min_length=1)]
    """The instruction to the teacher, in one or two sentences."""
    labels: Annotated[
        dict[LabelName, str | None], BeforeValidator(_labels_as_mapping), Field(min_length=2)
    ]
    """The label names, each with a description for the teacher (null: none). A plain list of names
    is also valid."""
    examples: tuple[Example, ...] = ()
    """Worked examples before every text (few-shot); may be empty."""
    examples_from: ExamplesConfig | None = None
    """Additional examples from a labelled file."""

    @property
    def label_names(self) -> list[str]:
        """The label names in order; their positions are the class indices everywhere."""
        return list(self.labels)

    @model_validator(mode="after")
    def _check(self) -> "TaskConfig":
        folded: dict[str, str] = {}
        for name in self.labels:
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(f"labels {other!r} and {name!r} differ only in case")
        for number, example in enumerate(self.examples):
            if example.label not in self.labels:
                raise ValueError(
                    f"examples[{number}].label is {example.label!r}, which is not one of the "
                    f"labels {self.label_names}"
                )
        return self


class TeacherConfig(Section):
    """The large language model that labels the corpus."""

    engine: str = "vllm"
    """`vllm`; `transformers`, where vLLM does not run; `openai`, for an endpoint; `table`, for
    existing labels; or `package.module:Class`, a custom engine (see llkd/teacher/engine.py)."""
    model: ModelName
    """A model directory or a hub name; for `openai`, the endpoint's name of the model; for `table`,
    the files."""
    revision: str | None = None
    """The hub revision (commit, tag or branch) of the model."""
    lora: ModelPath | None = None
    """A LoRA adapter for the model: a directory or a hub name."""
    replicas: Replicas = (1, 1)
    """Minimum and maximum number of teacher actors; the pool grows while shards are waiting."""
    nodes: Positive = 1
    """Nodes per replica, for models that need more GPUs than one node has. The GPUs of all these
    nodes must equal tensor_parallel_size x pipeline_parallel_size of `engine_args`."""
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Ray resources of one replica, such as {GPU: 2} or {CPU: 8}, on each of its `nodes`. Default: the
    GPUs that tensor and pipeline parallelism need if the cluster has GPUs, otherwise the CPUs of
    one node divided by the maximum number of replicas."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments passed to the engine unchanged (for vLLM: those of `vllm.LLM`)."""
    prompt_format: Literal["auto", "chat", "completion"] = "auto"
    """`chat` uses the model's chat template, `completion` plain text; `auto` uses `chat` if the
    model has a template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template. Templates that know `enable_thinking` or `thinking` are told false
    unless it is set here."""
    today: Annotated[str, AfterValidator(_iso_date)] = "2026-01-01"
    """The date for chat templates that insert one, so that a prompt is the same on every day."""
    verbalizer: Literal["auto", "word", "code", "sequence"] = "auto"
    """How the teacher expresses a label: `word`, by the first token of its name; `code`, by a
    single-token code listed in the prompt; `sequence`, by all its tokens, scored exactly. `auto`
    uses `word` if all first tokens differ, otherwise `sequence`."""
    min_label_mass: Fraction = 0.001
    """Minimum probability that the teacher gives to all labels together, as a mean over the first shard of a
    replica. Below it labelling stops: the teacher begins its answer with something else."""
    max_text_tokens: Annotated[int, Field(ge=1)] = 512
    """Texts are truncated to this many of the teacher's tokens."""
    truncation: Literal["head", "head_tail"] = "head"
    """Which part of a long text to keep: its start, or its start and its end."""
    calibration: Literal["none", "batch", "contextual", "temperature"] = "batch"
    """How raw label log-probabilities become a distribution (see llkd/core/calibration.py): `none`
    only normalises; `batch` removes the teacher's bias towards some labels; `contextual` removes
    its bias on content-free texts; `temperature` applies `batch`, then scales the confidence to fit
    the gold labels of `gold`. Can be changed without labelling again."""
    prior: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """For `batch` and `temperature`: the share of each label in the corpus, if known. Default:
    uniform."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of this teacher in the ensemble, if there are several."""
    max_actor_failures: Annotated[int, Field(ge=0)] = 3
    """How often a replica may die during start-up, or on one shard, before the stage fails."""

    @field_validator("model")
    @classmethod
    def _absolute_table(cls, model: str, info: ValidationInfo) -> str:
        return absolute_path(model) if info.data.get("engine") == "table" else model

    @model_validator(mode="after")
    def _check(self) -> "TeacherConfig":
        check_replicas(self.replicas)
        check_no_secrets({"model": self.model, "lora": self.lora, "engine_args": self.engine_args})
        if self.engine not in ENGINES and ":" not in self.engine:
            raise ValueError(
                f"engine must be one of {', '.join(ENGINES)} or package.module:Class, "
                f"not {self.engine!r}"
            )
        if self.nodes > 1:
            if self.engine in ENGINES and self.engine != "vllm":
                raise ValueError(
                    f"nodes ({self.nodes}) needs engine vllm, or a custom engine that starts its "
                    f"workers with Ray: {self.engine} runs on one node"
                )
            check_nodes(self.nodes, self.resources, self.engine_args)
        return self


class RunConfig(Section):
    """A whole run."""

    run_dir: Annotated[Directory, AfterValidator(_run_dir)]
    """The directory or URI of all results. Running again resumes there."""
    task: TaskConfig
    corpus: CorpusConfig
    test: TestConfig | None = None
    """Optional test set; without it nothing is evaluated."""
    gold: GoldConfig | None = None
    """Optional rows labelled by hand, best a random sample of the corpus: they improve the labels of all
    rows. Never rows of the test set. `validation` is another name of this section."""
    teacher: TeacherConfig
    teachers: tuple[TeacherConfig, ...] = ()
    """An ensemble of teachers, in place of `teacher`: their calibrated distributions are combined by
    the weighted mean of their logarithms. `teacher` is then the first of them."""
    teacher_number: int | None = Field(default=None, exclude=True)
    """The index of the teacher in an ensemble that this config is for; set by LLKD."""
    student: StudentConfig
    label: LabelConfig = LabelConfig()
    selection: SelectionConfig = SelectionConfig()
    plan: PlanConfig = PlanConfig()
    predict: PredictConfig = PredictConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()
    cheap: CheapConfig = CheapConfig()
    max_reject_fraction: Fraction = 0.1
    """Maximum share of rejected rows; a stage with more fails."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random choices."""

    def source(self, dataset: str) -> SourceConfig | None:
        """The source of `corpus`, `test`, `gold` or `predict/NAME`."""
        sources = {"corpus": self.corpus, "test": self.test, "gold": self.gold}
        return {**sources, PREDICT: self.predict.source}[section_of(dataset)]

    @property
    def datasets(self) -> list[str]:
        """`corpus`, and `test` and `gold` if they are configured."""
        optional = {"test": self.test, "gold": self.gold}
        return ["corpus", *(name for name, source in optional.items() if source is not None)]

    @property
    def all_teachers(self) -> tuple[TeacherConfig, ...]:
        """The teachers of the ensemble, or the only teacher."""
        return self.teachers or (self.teacher,)

    @property
    def estimates_prior(self) -> bool:
        """Whether to estimate label frequencies: calibration imposes some, and none are stated.

        Not after rounds of labelling, whose rows are no random sample of the corpus.
        """
        imposed = all(
            teacher.prior is None and teacher.calibration in ("batch", "temperature")
            for teacher in self.all_teachers
        )
        chosen_rows = self.label.in_part and self.label.rounds > 1
        return self.selection.estimate_prior and imposed and not chosen_rows

    @property
    def of_each_teacher(self) -> list["RunConfig"]:
        """The config for each teacher of an ensemble; empty if there is only one teacher."""
        return [
            self.model_copy(update={"teacher": teacher, "teachers": (), "teacher_number": number})
            for number, teacher in enumerate(self.teachers)
        ]

    @model_validator(mode="before")
    @classmethod
    def _gold_by_its_other_name(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("validation") is None:
            return raw
        if raw.get("gold") is not None:
            raise ValueError("gold and validation are the same section: set one of them")
        others = {name: value for name, value in raw.items() if name != "validation"}
        return {**others, "gold": raw["validation"]}

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, raw: Any) -> Any:
        several = raw.get("teachers") if isinstance(raw, dict) else None
        if not several:
            return raw
        if not isinstance(several, list | tuple):
            raise ValueError("teachers must be a list of sections like teacher")
        if raw.get("teacher") not in (None, several[0]):
            raise ValueError("set teacher or teachers, not both")
        return {**raw, "teacher": several[0]}

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        check_no_secrets({"run_dir": self.run_dir})
        for teacher in self.all_teachers:
            self._check_teacher(teacher)
        if self.label.in_part and self.teachers:
            raise ValueError(
                f"label.budget ({self.label.budget:g}) is not supported with several teachers: set "
                "it to 1, or use one teacher"
            )
        if self.label.patience is not None and self.student.validation_fraction == 0:
            raise ValueError(
                "label.patience needs a validation split: set student.validation_fraction"
            )
        return self

    def _check_teacher(self, teacher: TeacherConfig) -> None:
        prior = teacher.prior
        if prior is not None and set(prior) != set(self.task.labels):
            raise ValueError(
                f"teacher.prior must give a share to each of the labels {self.task.label_names}, "
                f"not to {list(prior)}"
            )
        if teacher.calibration == "temperature" and self.gold is None:
            raise ValueError(
                "teacher.calibration temperature is fitted to labelled rows: set gold, or use batch"
            )
