"""The selection policy of a run."""

from typing import cast, get_args

from llkd.config.plugins import imported_class
from llkd.config.run import RunConfig
from llkd.core.policies import Policy, PolicyName, PolicySettings, Rule, make_policy
from llkd.errors import ConfigError


def policy_of(config: RunConfig) -> Policy:
    """The policy that the config names.

    Raises:
        ConfigError: the user's class cannot be imported, or is not a policy.
    """
    selection = config.selection
    rule = Rule(
        thresholds=selection.thresholds,
        fraction=selection.fraction,
        confidence=selection.confidence_threshold,
        uncertainty=selection.uncertainty_threshold,
        momentum=selection.momentum,
        weights=selection.weights,
    )
    settings = PolicySettings(
        rule=rule,
        sides=selection.sides,
        warmup_epochs=selection.warmup_epochs,
        class_floor=selection.class_floor,
        parts=min(selection.parts, config.student.epochs),
        keep=selection.keep,
        clean_probability=selection.clean_probability,
        seed=config.seed,
    )
    if selection.policy in get_args(PolicyName):
        return make_policy(cast(PolicyName, selection.policy), settings)
    own = imported_class(selection.policy, "selection.policy")
    if not (isinstance(own, type) and issubclass(own, Policy)):
        raise ConfigError(
            f"selection.policy: {selection.policy} is not a policy",
            "Name a class that inherits from llkd.core.policies.Policy.",
        )
    return own(settings)  # type: ignore[arg-type]
