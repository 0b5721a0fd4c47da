"""Selection policies: the rows, labels and weights that the student trains on in an epoch."""

from dataclasses import dataclass, field
from typing import Any

from llkd.core.draws import uniform_by_position
from llkd.core.policies.base import (
    ROWS,
    SMALLEST_WEIGHT,
    Choice,
    Policy,
    Signals,
    State,
)
from llkd.core.policies.baselines import SelectAll, SelectRandom
from llkd.core.policies.driver import select, select_rows
from llkd.core.policies.label_noise import ConfidentLearning, SmallLoss
from llkd.core.policies.refined import Refined
from llkd.core.policies.student_confidence import FreeMatch, SoftMatch
from llkd.core.policies.threshold import Rule, ThresholdPolicy
from llkd.core.policy_names import PolicyName, Sides, ThresholdKind, WeightKind

__all__ = [
    "ROWS", "SMALLEST_WEIGHT", "Choice", "Policy", "PolicyName", "PolicySettings", "Rule", "Signals",
    "State", "ThresholdKind", "WeightKind", "make_policy", "select", "select_rows",
    "uniform_by_position",
]  # fmt: skip

_SIDES: dict[str, Sides] = {"teacher_confidence": "teacher", "student_uncertainty": "student"}


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings of all policies; each policy uses some of them."""

    rule: Rule = field(default_factory=Rule)
    sides: Sides = "both"
    """For `llkd`: the signals that must reach their thresholds."""
    warmup_epochs: int = 1
    class_floor: float = 0.0
    parts: int = 4
    keep: float = 0.9
    clean_probability: float = 0.5
    seed: int = 0


def make_policy(name: PolicyName, settings: PolicySettings | None = None) -> Policy:
    """The policy that `selection.policy` names."""
    s = settings or PolicySettings()
    momentum = s.rule.momentum
    common: dict[str, Any] = {"warmup_epochs": s.warmup_epochs, "seed": s.seed}
    filled = {**common, "class_floor": s.class_floor}
    match name:
        case "all":
            return SelectAll(s.seed)
        case "random":
            return SelectRandom(s.rule.fraction, s.seed)
        case "softmatch":
            return SoftMatch(momentum=momentum, **common)
        case "freematch":
            return FreeMatch(momentum=momentum, **filled)
        case "small_loss":
            return SmallLoss(clean_probability=s.clean_probability, **filled)
        case "confident_learning":
            return ConfidentLearning(**filled)
        case "refined":
            return Refined(
                parts=s.parts, keep=s.keep, weights=s.rule.weights, momentum=momentum, **filled
            )
    sides = _SIDES.get(name, s.sides)
    return ThresholdPolicy(
        teacher_side=sides != "student", student_side=sides != "teacher", rule=s.rule, **filled
    )
