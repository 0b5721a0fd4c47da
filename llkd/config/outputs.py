"""The settings of outputs: exported directories, the hub and experiment trackers.

The docstring under each field is its documentation. No setting here changes what a run computes.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from llkd.config.section import Directory, Section, check_no_secrets

Repository = Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*/\w[\w.-]*$", max_length=96)]
"""`owner/name` on the hub."""
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z]+)?$|^multilingual$")]


class ExportConfig(Section):
    """What `jobs/export.py` exports from a finished run.

    The hub token is read from the environment (HF_TOKEN).
    """

    folder: Directory | None = None
    """The output directory or URI; null: `<run_dir>/export`."""
    onnx: bool = False
    """Also export the student as ONNX and verify it against the student. Needs the packages of
    `pip install '.[onnx]'`."""
    dataset: bool = True
    """Also export the corpus with the teacher's labels."""
    distribution: bool = False
    """Include the teacher's full distribution in the labelled rows."""
    gold: bool = False
    """Include the corpus's gold labels in the labelled rows, if `corpus.label_column` names them."""
    license: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*$")] | None = None
    """The licence on the cards, by its hub identifier: `apache-2.0`, `cc-by-4.0`, `other`."""
    language: Language | tuple[Language, ...] | None = None
    """The language of the texts on the cards, as an ISO 639 code such as `en`, or a list of codes."""
    model_repo: Repository | None = None
    """The student's repository on the hub, `owner/name`; linked from the data set's card."""
    dataset_repo: Repository | None = None
    """The data set's repository on the hub, `owner/name`; linked from the student's card."""
    push_to_hub: bool = False
    """Push the student and the data set to their repositories, if given. The commit replaces the
    contents of the repository."""
    private: bool = True
    """Create new repositories as private."""
    revision: Annotated[str, StringConstraints(pattern=r"^\w[\w./-]*$")] | None = None
    """The branch to push to, created if it does not exist; null: the main branch."""

    @model_validator(mode="after")
    def _check(self) -> "ExportConfig":
        check_no_secrets({"folder": self.folder})
        if self.push_to_hub and self.model_repo is None and self.dataset_repo is None:
            raise ValueError("push_to_hub needs model_repo or dataset_repo as its destination")
        if self.push_to_hub and self.dataset_repo is not None and not self.dataset:
            raise ValueError("push_to_hub to dataset_repo needs dataset: true")
        return self


class TrackingConfig(Section):
    """Experiment trackers that receive a run's metrics, in addition to the TensorBoard files in
    `<run_dir>/tensorboard`. llkd/results/tracking.py lists the metric names.

    Credentials are read from the environment: WANDB_API_KEY, MLFLOW_TRACKING_USERNAME, ....
    """

    mlflow: Annotated[str, Field(min_length=1)] | None = None
    """The MLflow tracking server, such as `http://HOST:5000`. Both trackers need the packages of
    `pip install '.[tracking]'`."""
    wandb: Annotated[str, Field(min_length=1)] | None = None
    """The Weights & Biases project; `WANDB_MODE=offline` keeps the run on this machine."""
    experiment: Annotated[str, Field(min_length=1)] = "llkd"
    """The MLflow experiment."""
    run_name: Annotated[str, Field(min_length=1)] | None = None
    """The name of the run in both trackers; null: the last component of `run_dir`."""

    @property
    def trackers(self) -> list[Literal["mlflow", "wandb"]]:
        """The trackers that are configured."""
        wanted: dict[Literal["mlflow", "wandb"], str | None] = {
            "mlflow": self.mlflow,
            "wandb": self.wandb,
        }
        return [name for name, value in wanted.items() if value is not None]

    @model_validator(mode="after")
    def _check(self) -> "TrackingConfig":
        check_no_secrets({"mlflow": self.mlflow})
        return self
