"""The settings of row selection, labelling budget, loss and linear probe."""

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llkd.config.section import Fraction, Section
from llkd.core.policy_names import (
    AUTO,
    DEFAULT_POLICY,
    PolicyName,
    Sides,
    ThresholdKind,
    WeightKind,
)


def _policy(name: str) -> str:
    if name not in (*get_args(PolicyName), AUTO) and not re.fullmatch(r"[\w.]+:\w+", name):
        known = ", ".join((*get_args(PolicyName), AUTO))
        raise ValueError(f"must be one of {known}, or package.module:Class")
    return name


class SelectionConfig(Section):
    """Which rows the student trains on, selected anew each epoch."""

    policy: Annotated[str, AfterValidator(_policy)] = DEFAULT_POLICY
    """`llkd`: rows on which the teacher is confident and the student uncertain. `refined`: one part
    of the corpus per epoch, without the least confident labels. Baselines: `all`, `random`, `teacher_confidence`, `student_uncertainty`;
    `freematch` and `softmatch`, by the student's own confidence; `small_loss` and
    `confident_learning`, which drop rows with suspect labels. llkd/core/policies cites the source
    of each. `auto`: the one whose trial on the frozen student is best on the rows labelled by hand
    (`gold`), `llkd` without such rows. Or `package.module:Class`, a custom policy (see docs/extending.md)."""
    trial: bool = True
    """Where labels are refined, and there are rows labelled by hand or a test set: train a head on the
    frozen student by each of six policies and report what it would have done
    (llkd/distill/trial.py). Takes ten to twenty seconds, and changes nothing unless `policy` is `auto`."""
    refine: bool | None = None
    """Refine the labels before the first epoch: the teacher's distribution of each row times that of a
    linear probe fitted to other rows (see llkd/core/refinement.py). Costs about one scoring pass over
    the corpus. Default: for `llkd`, `refined` and `auto`, if the probe agrees with the teacher's most confident
    labels; other policies keep the teacher's labels."""
    estimate_prior: bool = True
    """Where labels are refined and `teacher.prior` is not set: estimate how frequent each label is,
    and calibrate to the estimate if it is far from uniform and well supported (see
    llkd/core/prior.py). Not for labels from several rounds (`label.rounds`)."""
    sides: Sides = "both"
    """For `llkd`: which signals must reach their thresholds."""
    uncertainty: Literal["entropy", "least_confidence", "margin"] = "entropy"
    """The measure of uncertainty of the student's distribution."""
    mc_dropout: Annotated[int, Field(ge=0)] = 0
    """Dropout passes that are averaged to the student's distribution (arXiv 1506.02142); 0: one
    pass without dropout. Each pass costs as much as the one without dropout."""
    thresholds: ThresholdKind = "class_mean"
    """Thresholds of confidence and uncertainty. `class_mean`: the mean over the rows with the same
    pseudo-label. `freematch`: the mean over all rows, scaled by the class's share (arXiv
    2205.07246). `quantile`: the value that the share `fraction` of the rows with the same
    pseudo-label reaches. `fixed`: the next two settings. For `llkd` and its two sides; `refined`
    uses `keep`."""
    confidence_threshold: Fraction = 0.5
    """For `fixed`: minimum confidence of the teacher."""
    uncertainty_threshold: Fraction = 0.5
    """For `fixed`: minimum uncertainty of the student."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum m of the thresholds' moving average over epochs, x <- m x + (1 - m) x_new."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs that select by the teacher alone: an untrained student's uncertainty is noise."""
    class_floor: Fraction = 0.02
    """Minimum share of each class's rows to select, among those not held out; a class that falls
    short is filled up with its most confident rows."""
    weights: WeightKind = "product"
    """Loss weights of the selected rows, scaled to mean 1. `none`: equal; `product`: confidence times
    uncertainty; `sum`: confidence plus uncertainty; `softmatch`: decreasing with the distance of the
    confidence below its mean (arXiv 2301.10921)."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """For `random`: the share of rows drawn each epoch. For `quantile`: see `thresholds`."""
    beta: Annotated[float, Field(ge=0, le=4)] = 1.0
    """For `refine`: weight of the probe relative to the teacher."""
    parts: Annotated[int, Field(ge=1, le=1000)] = 4
    """For `refined`: number of random parts of the corpus, at most the number of epochs. Epoch n
    trains on part n modulo `parts`."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.9
    """For `refined`: share of each class's rows to select, the most confident first."""
    clean_probability: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """For `small_loss`: minimum probability that a row's loss belongs to the low-loss component."""

    @property
    def refines(self) -> bool:
        """Whether the labels may be refined before the first epoch."""
        wanted = self.policy in ("llkd", "refined", AUTO) if self.refine is None else self.refine
        return wanted and self.beta > 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.policy == AUTO and not (self.refines and self.trial):
            raise ValueError(
                "policy auto chooses by a trial on refined labels: remove refine: false, beta: 0 and "
                "trial: false"
            )
        return self


class LabelConfig(Section):
    """Which rows of the corpus the teacher labels."""

    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the rows to label; 1: all. Below 1 the teacher labels in rounds: first a random sample
    of the rows, then those on which a student trained on the labels so far is least certain."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Number of rounds; 1: the whole budget at random. A student is trained after each round except
    the last."""
    first: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the budget for the first, random round; the others share the rest equally."""
    diversity: bool = True
    """Spread the rows of a round as evenly as possible over cells of similar texts
    (llkd/teacher/simhash.py), and take the most uncertain rows of each cell; otherwise take the most
    uncertain rows overall."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many rounds without improvement on the validation split, even if budget
    remains; null: never. Needs `student.validation_fraction`."""

    @property
    def in_part(self) -> bool:
        """Whether the budget leaves rows unlabelled."""
        return self.budget < 1

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in the fingerprint, by dotted name; empty if all rows are labelled."""
        named = {f"label.{key}": value for key, value in self.model_dump().items()}
        return named if self.in_part else {}


class LossSettings(Section):
    """The loss on the selected rows. `student.loss: gce` is shorthand for setting only `kind`."""

    kind: Literal["hard", "soft", "mix", "gce"] = "hard"
    """`hard`: cross-entropy with the pseudo-label. `soft`: divergence from the teacher's calibrated
    distribution (for `refined`, the refined one; arXiv 1503.02531). `mix`: a weighted sum of both.
    `gce`: generalised cross-entropy with the pseudo-label, which is robust to wrong labels (arXiv
    1805.07836)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """For `hard` and `mix`: share of a pseudo-label's mass that is spread over all labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """For `soft` and `mix`: temperature that softens both distributions before they are compared."""
    soft_share: Fraction = 0.5
    """For `mix`: weight of the `soft` loss."""
    q: Annotated[float, Field(gt=0, le=1)] = 0.7
    """For `gce`: exponent between cross-entropy (towards 0) and mean absolute error (1)."""

    @property
    def uses_targets(self) -> bool:
        """Whether the teacher's distributions are needed."""
        return self.kind in ("soft", "mix")


def _loss(value: Any) -> Any:
    """Expand the shorthand for the kind."""
    return {"kind": value} if isinstance(value, str) else value


Loss = Annotated[LossSettings, BeforeValidator(_loss)]


class CheapConfig(Section):
    """The probe that `jobs/compare.py --cheap` trains on the frozen student's embeddings. All other
    settings apply unchanged."""

    hidden: Annotated[int, Field(ge=0)] = 128
    """Units of the hidden layer; 0: no hidden layer, that is, logistic regression."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout before each layer."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Replaces `student.learning_rate`."""
    passes: Annotated[int, Field(ge=1)] = 4
    """Passes over the selected rows per epoch; row visits count each row once."""
