"""The selection policy of a run."""

from typing import cast, get_args

from llkd.config.plugins import imported_class
from llkd.config.run import RunConfig
from llkd.core.policies import Policy, PolicyName, PolicySettings, Rule, make_policy
from llkd.distill.policy_choice import CANDIDATES, chosen_policy
from llkd.errors import ConfigError


def rivals_of(config: RunConfig) -> dict[str, Policy]:
    """The policies that the config has tried on the frozen student, by name."""
    if not config.selection.trial:
        return {}
    return {name: policy_of(with_policy(config, name)) for name in CANDIDATES}


def with_policy(config: RunConfig, name: str) -> RunConfig:
    """The config with another policy."""
    selection = config.selection.model_copy(update={"policy": name})
    return config.model_copy(update={"selection": selection})


def policy_of(config: RunConfig) -> Policy:
    """The policy that the config names.

    Raises:
        ConfigError: the user's class cannot be imported, or is not a policy.
    """
    selection, chosen = config.selection, chosen_policy(config)
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
    if chosen in get_args(PolicyName):
        return make_policy(cast(PolicyName, chosen), settings)
    own = imported_class(chosen, "selection.policy")
    if not (isinstance(own, type) and issubclass(own, Policy)):
        raise ConfigError(
            f"selection.policy: {selection.policy} is not a policy",
            "Name a class that inherits from llkd.core.policies.Policy.",
        )
    return own(settings)  # type: ignore[arg-type]
