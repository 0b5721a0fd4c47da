"""The sections that say where results go: exported folders, the hub, trackers.

The docstring under each field is its documentation. None of them changes what a run computes.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from llkd.config.sources import Section, check_no_secrets, control_characters

Repository = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*/\w[\w.-]*$", max_length=96)]
"""`owner/name` at the hub."""
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z]+)?$|^multilingual$")]


class ExportConfig(Section):
    """What `jobs/export.py` makes of a finished run.

    The token of the hub comes from the environment (HF_TOKEN).
    """

    folder: str | None = None
    """Where it goes, a directory or a URI of its own; null: `<run_dir>/export`."""
    onnx: bool = False
    """The student as ONNX too, checked against the student itself. Needs the packages of
    `pip install '.[onnx]'`."""
    dataset: bool = True
    """The corpus with the teacher's labels too."""
    distribution: bool = False
    """The labelled rows hold the teacher's whole distribution too."""
    gold: bool = False
    """They hold the corpus's gold labels too, where `corpus.label_column` names them."""
    license: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*$")] | None = None
    """The licence that the cards name, as the hub calls it: `apache-2.0`, `cc-by-4.0`, `other`."""
    language: Language | tuple[Language, ...] | None = None
    """The language of the texts for the cards, as ISO 639 has it: `en`, or a list."""
    model_repo: Repository | None = None
    """The student's repository at the hub, `owner/name`; the data set's card names it."""
    dataset_repo: Repository | None = None
    """The data set's repository at the hub; the student's card names it."""
    push_to_hub: bool = False
    """Push what has a repository. The commit replaces what is in the repository."""
    private: bool = True
    """Whether a repository that does not exist yet is made a private one."""
    revision: Annotated[str, StringConstraints(pattern=r"^\w[\w./-]*$")] | None = None
    """The branch to push to, made if it is not there; null: the main one."""

    @model_validator(mode="after")
    def _check(self) -> "ExportConfig":
        check_no_secrets({"folder": self.folder})
        if self.folder is not None and (
            not self.folder.strip("/ ") or control_characters(self.folder)
        ):
            raise ValueError(f"folder must name a directory, not {self.folder!r}")
        if self.push_to_hub and self.model_repo is None and self.dataset_repo is None:
            raise ValueError("push_to_hub needs model_repo or dataset_repo, which say where to")
        if self.push_to_hub and self.dataset_repo is not None and not self.dataset:
            raise ValueError("push_to_hub to dataset_repo needs dataset: true")
        return self


class TrackingConfig(Section):
    """Where a run's figures go beside TensorBoard, whose files are always in
    `<run_dir>/tensorboard`. The names of the figures are in llkd/results/tracking.py.

    Keys and passwords come from the environment: WANDB_API_KEY, MLFLOW_TRACKING_USERNAME, ....
    """

    mlflow: Annotated[str, Field(min_length=1)] | None = None
    """MLflow's tracking server, such as `http://HOST:5000`.
    Needs the packages of `pip install '.[tracking]'`, as `wandb` does."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """The project at Weights & Biases; `WANDB_MODE=offline` keeps the run on this machine."""
    experiment: Annotated[str, Field(min_length=1)] = "llkd"
    """The experiment at MLflow."""
    run_name: Annotated[str, Field(min_length=1)] | None = None
    """How both call the run; null: the last part of `run_dir`."""

    @property
    def trackers(self) -> list[Literal["mlflow", "wandb"]]:
        """Those that are asked for."""
        wanted: dict[Literal["mlflow", "wandb"], str | None] = {
            "mlflow": self.mlflow,
            "wandb": self.wandb,
        }
        return [name for name, value in wanted.items() if value is not None]

    @model_validator(mode="after")
    def _check(self) -> "TrackingConfig":
        check_no_secrets({"mlflow": self.mlflow})
        return self
