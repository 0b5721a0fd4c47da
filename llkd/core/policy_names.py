"""The names of policies and of their variants, as a config spells them."""

from typing import Literal

PolicyName = Literal[
    "llkd", "refined", "all", "random", "teacher_confidence", "student_uncertainty", "freematch",
    "softmatch", "small_loss", "confident_learning",
]  # fmt: skip
DEFAULT_POLICY: PolicyName = "llkd"
AUTO = "auto"
"""In place of a policy: the one that rows labelled by hand speak for, see llkd/distill/trial.py."""
Sides = Literal["both", "teacher", "student"]
ThresholdKind = Literal["class_mean", "freematch", "quantile", "fixed"]
WeightKind = Literal["none", "product", "sum", "softmatch"]
