"""What is learnt from: the selection of rows, the loss, and the head of a frozen student."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from llkd.config.sources import Fraction, Section

PolicyName = Literal[
    "llkd", "refined", "all", "random", "teacher_confidence", "student_uncertainty", "freematch",
    "softmatch", "small_loss", "confident_learning",
]  # fmt: skip


def _policy(name: str) -> str:
    if name not in get_args(PolicyName) and not re.fullmatch(r"[\w.]+:\w+", name):
        known = ", ".join(get_args(PolicyName))
        raise ValueError(f"must be one of {known}, or package.module:Class")
    return name


class SelectionConfig(Section):
    """Which rows the student trains on, chosen anew each epoch."""

    policy: Annotated[str, AfterValidator(_policy)] = "llkd"
    """`llkd`: the teacher is confident and the student is uncertain. `refined`: a part of the corpus
    each epoch, with labels that the student, which has not learnt it, helps to mend. Baselines: `all`, `random`,
    `teacher_confidence`, `student_uncertainty`; `freematch` and `softmatch`, by the student's own
    confidence; `small_loss` and `confident_learning`, which leave out rows that look labelled
    wrong. Each with its source in llkd/core/policies. Or `package.module:Class` for one of your own
    (see docs/extending.md)."""
    sides: Literal["both", "teacher", "student"] = "both"
    """For `llkd`: which signals have to reach their thresholds."""
    uncertainty: Literal["entropy", "least_confidence", "margin"] = "entropy"
    """How the student's uncertainty is read off its distribution."""
    mc_dropout: Annotated[int, Field(ge=0)] = 0
    """Passes with dropout whose mean is the student's distribution (arXiv 1506.02142); 0: one
    pass without dropout. Each pass costs as much as the one it replaces."""
    thresholds: Literal["class_mean", "freematch", "quantile", "fixed"] = "class_mean"
    """What confidence and uncertainty have to reach: the mean over the rows of the same
    pseudo-label; the mean over all rows scaled by the class's share (arXiv 2205.07246); what the
    share `fraction` of the rows of the same pseudo-label reaches; or the two settings below. For
    `llkd` and its two sides: `refined` has `keep`."""
    confidence_threshold: Fraction = 0.5
    """For `fixed`: least confidence of the teacher."""
    uncertainty_threshold: Fraction = 0.5
    """For `fixed`: least uncertainty of the student."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight m of the past in the moving average x <- m x + (1 - m) x_new, over epochs, of what
    serves as thresholds."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs in which the teacher's side alone selects: a cold student's uncertainty is noise."""
    class_floor: Fraction = 0.02
    """Least share of each class's rows to select, of those not held out; a class that falls short is
    filled up with the rows of most confidence."""
    weights: Literal["none", "product", "sum", "softmatch"] = "product"
    """Weights of the selected rows in the loss, scaled to mean 1: all the same; confidence times
    uncertainty; their sum; or less the further confidence is below its mean (arXiv 2301.10921)."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """For `random`: the share of rows drawn each epoch. For `quantile`: see there."""
    beta: Annotated[float, Field(ge=0, le=4)] = 1.0
    """For `refined`: the most that the student's word counts beside the teacher's. How much it
    does is found out from rows that it has not learnt, and falls to 0 for a student that is no
    good."""
    parts: Annotated[int, Field(ge=1, le=1000)] = 4
    """For `refined`: parts that the corpus is drawn into, no more than there are epochs. Epoch n
    trains on part n modulo `parts`."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.9
    """For `refined`: share of each class's rows of the part that are taken, the most confident."""
    clean_probability: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """For `small_loss`: least probability that a row's loss is of the smaller component."""


class LabelConfig(Section):
    """Which rows of the corpus the teacher labels."""

    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the rows that it labels; 1: all. With less it labels in rounds: a random part of
    the rows first, then those that a student trained on the labels so far is least sure of."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """How many; 1: all of the budget at random. A student is trained after each but the last."""
    first: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the budget in the first, random round; the others share the rest equally."""
    diversity: bool = True
    """Spread the rows of a round over cells of like texts (llkd/teacher/simhash.py), as evenly as there are
    rows for, and take the most uncertain of each; else the most uncertain of all."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many rounds without a better student on the rows held out, whatever is left
    of the budget; null: never. Needs `student.validation_fraction`."""

    @property
    def in_part(self) -> bool:
        """Whether some rows are left without a label."""
        return self.budget < 1

    @property
    def settings(self) -> dict[str, Any]:
        """What they add to a fingerprint, by dotted name: nothing where all rows are labelled."""
        named = {f"label.{key}": value for key, value in self.model_dump().items()}
        return named if self.in_part else {}


class LossSettings(Section):
    """What a selected row costs the student; `student.loss: gce` is short for the kind alone."""

    kind: Literal["hard", "soft", "mix", "gce"] = "hard"
    """`hard`: cross-entropy to the pseudo-label. `soft`: divergence from the teacher's calibrated
    distribution (for `refined` the refined one; arXiv 1503.02531). `mix`: of both. `gce`:
    generalised cross-entropy to the pseudo-label, which minds wrong ones less (arXiv 1805.07836)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For `hard` and `mix`: share of a pseudo-label that is spread over all labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """For `soft` and `mix`: both distributions are softened by it before they are compared."""
    soft_share: Fraction = 0.5
    """For `mix`: share of `soft`."""
    q: Annotated[float, Field(gt=0, le=1)] = 0.7
    """For `gce`: towards 0 it is cross-entropy, at 1 the mean absolute error."""

    @property
    def uses_targets(self) -> bool:
        """Whether the teacher's distributions are needed."""
        return self.kind in ("soft", "mix")


def _loss(value: Any) -> Any:
    """A kind alone means the loss of that kind."""
    return {"kind": value} if isinstance(value, str) else value


Loss = Annotated[LossSettings, BeforeValidator(_loss)]


class CheapConfig(Section):
    """The head that `jobs/compare.py --cheap` trains on a frozen student's embeddings; all else is
    as the rest of the config says."""

    hidden: Annotated[int, Field(ge=0)] = 128
    """Units of its hidden layer; 0: none, which is logistic regression."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout before each of its layers."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """In place of `student.learning_rate`."""
    passes: Annotated[int, Field(ge=1)] = 4
    """Times that the selected rows are gone through in an epoch; they count once as row visits."""
