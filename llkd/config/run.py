"""Every setting of a run: checked once, frozen.

The docstring under each field is its documentation.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from llkd.config.outputs import ExportConfig, TrackingConfig
from llkd.config.parallelism import check_nodes
from llkd.config.selection import CheapConfig, LabelConfig, SelectionConfig
from llkd.config.sources import (
    PREDICT,
    CorpusConfig,
    Fraction,
    ModelName,
    Paths,
    Positive,
    PredictConfig,
    Replicas,
    Section,
    SourceConfig,
    TestConfig,
    check_no_secrets,
    check_replicas,
    control_characters,
    section_of,
)
from llkd.config.student import StudentConfig

ENGINES = ("vllm", "transformers", "openai", "table")
"""The teacher engines that LLKD has."""

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")
"""The object stores and file systems that pyarrow reaches by URI."""


def _label_name(name: str) -> str:
    if not name.strip():
        raise ValueError("a label name must not be empty")
    if name != name.strip():
        raise ValueError(f"label name {name!r} has leading or trailing white space")
    if control_characters(name):
        raise ValueError(f"label name {name!r} holds a line break or another control character")
    return name


def _run_dir(path: str) -> str:
    if not path.strip("/ "):
        raise ValueError(f"must name a directory, not {path!r}")
    if control_characters(path):
        raise ValueError("must not hold a line break, NUL or another control character")
    scheme, separator, _ = path.partition("://")
    if separator and scheme not in SCHEMES:
        raise ValueError(f"must be a directory or a URI of {', '.join(SCHEMES)}")
    for folder, maker in (("compare", "jobs/compare.py"), ("rounds", "labelling in rounds")):
        if path.rstrip("/").split("/")[-2:-1] == [folder]:
            raise ValueError(f"must not be in a folder named {folder}: {maker} makes such runs")
    return path


def _labels_as_mapping(value: Any) -> Any:
    """A list of names means names without descriptions."""
    if isinstance(value, list):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"label {name!r} is not text; YAML needs quotes around it")
        if len(set(value)) < len(value):
            raise ValueError("label names must be distinct")
        return dict.fromkeys(value)
    return value


LabelName = Annotated[str, AfterValidator(_label_name)]


class Example(Section):
    """One worked example shown to the teacher."""

    text: Annotated[str, Field(min_length=1)]
    """The text of the example."""
    label: str
    """Its label, one of `task.labels`."""


class ExamplesConfig(Section):
    """Worked examples taken from a labelled file."""

    path: Paths
    """Labelled rows, in any form that `corpus.path` takes."""
    text_column: str = "text"
    """The column that holds the text."""
    label_column: str = "label"
    """The column that holds the label, one of `task.labels`."""
    choose: Literal["seed", "nearest"] = "seed"
    """`seed` draws the same examples for all texts; `nearest` takes for each text those whose
    embeddings are nearest to its own. Then prompts share less that can be computed once."""
    per_class: Annotated[int, Field(ge=1)] = 1
    """For `seed`: examples of each label."""
    nearest: Annotated[int, Field(ge=1)] = 4
    """For `nearest`: examples a text."""
    embedder: str | None = None
    """For `nearest`: the encoder whose mean hidden state is the embedding, a directory or a hub
    name."""

    @model_validator(mode="after")
    def _check(self) -> "ExamplesConfig":
        check_no_secrets({"path": self.path, "embedder": self.embedder})
        if self.choose == "nearest" and self.embedder is None:
            raise ValueError("choose nearest needs an embedder, such as the student's model")
        return self


class TaskConfig(Section):
    """What the teacher is asked."""

    instruction: Annotated[str, Field(min_length=1)]
    """The question, in a sentence or two."""
    labels: Annotated[
        dict[LabelName, str | None], BeforeValidator(_labels_as_mapping), Field(min_length=2)
    ]
    """The label names, each with what the teacher is told about it (null: the name alone).
    A plain list of names is allowed too."""
    examples: tuple[Example, ...] = ()
    """Worked examples shown before every text (few-shot); may be empty."""
    examples_from: ExamplesConfig | None = None
    """More examples, drawn from a labelled file."""

    @property
    def label_names(self) -> list[str]:
        """The label names in order: their positions are the class indices everywhere."""
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
    """The large language model that labels."""

    engine: str = "vllm"
    """`vllm`; `transformers` where vLLM does not run; `openai` for an endpoint; `table` for labels
    made elsewhere; or `package.module:Class` for one of your own (see llkd/teacher/engine.py)."""
    model: ModelName
    """A model directory or a hub name; for `openai` the name the endpoint knows; for `table` the
    files."""
    revision: str | None = None
    """The hub revision (commit, tag or branch) of the model."""
    lora: str | None = None
    """A LoRA adapter for the model: a directory or a hub name."""
    replicas: Replicas = (1, 1)
    """Fewest and most teacher actors; the pool grows while shards wait."""
    nodes: Positive = 1
    """Nodes that one replica is spread over, where a model needs more GPUs than a node has. The GPUs
    of all of them must be tensor_parallel_size x pipeline_parallel_size of `engine_args`."""
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Ray resources of one replica, such as {GPU: 2} or {CPU: 8}, on each of its `nodes`. By default
    the GPUs that tensor and pipeline parallelism need where the cluster has GPUs, else the CPUs of
    one node divided by the largest number of replicas."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments passed to the engine as they are (for vLLM: those of `vllm.LLM`)."""
    prompt_format: Literal["auto", "chat", "completion"] = "auto"
    """`chat` uses the model's chat template, `completion` plain text; `auto` takes chat where
    the model has a template."""
    verbalizer: Literal["auto", "word", "code", "sequence"] = "auto"
    """How a label is said: `word`, by its own first token; `code`, by a code of one token that
    the prompt lists; `sequence`, by all its tokens, exactly. `auto` takes `word` where all first
    tokens differ, else `sequence`."""
    max_text_tokens: Annotated[int, Field(ge=1)] = 512
    """The text is cut to this many of the teacher's tokens."""
    truncation: Literal["head", "head_tail"] = "head"
    """What is kept of a text that is too long: its start, or its start and its end."""
    calibration: Literal["none", "batch", "contextual", "temperature"] = "batch"
    """How raw label log-probabilities become a distribution (see llkd/core/calibration.py):
    `none` only normalises; `batch` takes out the teacher's bias towards some labels;
    `contextual` takes out what it says of texts without content; `temperature` is `batch`, and
    then as sure as the gold of `validation` warrants. Can be changed without labelling again."""
    prior: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """For `batch` and `temperature`: the share of each label in the corpus, if it is known; by
    default all are taken to be as frequent."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Among several teachers: how much its word counts."""
    max_actor_failures: Annotated[int, Field(ge=0)] = 3
    """How often a replica may die at its start, or on one shard, before the stage fails."""

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
                    f"nodes ({self.nodes}) needs engine vllm, or one of your own that starts its "
                    f"workers by Ray: {self.engine} runs on one node"
                )
            check_nodes(self.nodes, self.resources, self.engine_args)
        return self


class PlanConfig(Section):
    """What `jobs/plan.py` looks at, and what it is told."""

    rows: Annotated[int, Field(ge=16)] = 256
    """Rows of the corpus to label, score and train on for it."""
    corpus_rows: Annotated[float, Field(ge=1, le=1e15)] | None = None
    """Rows to tell it for, such as 1e9; null: those of the corpus."""
    price_per_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of one replica for an hour, in any currency; a training worker costs as much."""
    cpu_price_per_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of a CPU for an hour, for ingest and selection."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs that ingest and select; null: those that Ray has now."""
    teacher_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Of one replica, where it is known: the teacher is then not loaded."""
    score_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Of one worker that scores. Where this and the next are given, the student is not loaded."""
    train_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Of one worker that trains."""
    selected_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the rows that an epoch trains on; null: what is usual for the policy (see
    llkd/lab/cost_model.py)."""

    @model_validator(mode="after")
    def _check(self) -> "PlanConfig":
        if (self.score_rows_per_second is None) != (self.train_rows_per_second is None):
            raise ValueError(
                "give score_rows_per_second and train_rows_per_second together: the student is "
                "loaded for both or for none"
            )
        return self


class RunConfig(Section):
    """A whole run."""

    run_dir: Annotated[str, AfterValidator(_run_dir)]
    """Where all results go: a directory or a URI. Running again resumes there."""
    task: TaskConfig
    corpus: CorpusConfig
    test: TestConfig | None = None
    """Optional: without it nothing is measured."""
    validation: TestConfig | None = None
    """Optional: some labelled rows beside the test set, to which `temperature` calibration is
    fitted."""
    teacher: TeacherConfig
    teachers: tuple[TeacherConfig, ...] = ()
    """In place of `teacher`: several, whose calibrated distributions are combined by the weighted
    mean of their logarithms. `teacher` is then the first of them."""
    teacher_number: int | None = Field(default=None, exclude=True)
    """Which of several teachers this config is for; LLKD sets it."""
    student: StudentConfig
    label: LabelConfig = LabelConfig()
    selection: SelectionConfig = SelectionConfig()
    plan: PlanConfig = PlanConfig()
    predict: PredictConfig = PredictConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()
    cheap: CheapConfig = CheapConfig()
    max_reject_fraction: Fraction = 0.1
    """A stage fails when more than this share of the rows cannot be used."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random."""

    def source(self, dataset: str) -> SourceConfig | None:
        """Where the rows of `corpus`, `test`, `validation` or `predict/NAME` come from."""
        sources = {"corpus": self.corpus, "test": self.test, "validation": self.validation}
        return {**sources, PREDICT: self.predict.source}[section_of(dataset)]

    @property
    def datasets(self) -> list[str]:
        """`corpus`, and `test` and `validation` where they are given."""
        optional = {"test": self.test, "validation": self.validation}
        return ["corpus", *(name for name, source in optional.items() if source is not None)]

    @property
    def of_each_teacher(self) -> list["RunConfig"]:
        """The same run for each of several teachers alone; empty where there is one."""
        return [
            self.model_copy(update={"teacher": teacher, "teachers": (), "teacher_number": number})
            for number, teacher in enumerate(self.teachers)
        ]

    @model_validator(mode="before")
    @classmethod
    def _one_or_several(cls, raw: Any) -> Any:
        several = raw.get("teachers") if isinstance(raw, dict) else None
        if not several:
            return raw
        if not isinstance(several, list | tuple):
            raise ValueError("teachers must be a list of sections like teacher")
        if raw.get("teacher") not in (None, several[0]):
            raise ValueError("give teacher or teachers, not both")
        return {**raw, "teacher": several[0]}

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        check_no_secrets({"run_dir": self.run_dir})  # not beside the setting, which would be shown
        for teacher in (self.teacher, *self.teachers):
            self._check_teacher(teacher)
        if self.label.in_part and self.teachers:
            raise ValueError(
                f"label.budget ({self.label.budget:g}) is not supported with several teachers: set "
                "it to 1, or give one teacher"
            )
        if self.label.patience is not None and self.student.validation_fraction == 0:
            raise ValueError("label.patience needs rows held out: set student.validation_fraction")
        return self

    def _check_teacher(self, teacher: TeacherConfig) -> None:
        prior = teacher.prior
        if prior is not None and set(prior) != set(self.task.labels):
            raise ValueError(
                f"teacher.prior must give a share to each of the labels {self.task.label_names}, "
                f"not to {list(prior)}"
            )
        if teacher.calibration == "temperature" and self.validation is None:
            raise ValueError(
                "teacher.calibration temperature is fitted to labelled rows: name them in "
                "validation, or use batch"
            )
