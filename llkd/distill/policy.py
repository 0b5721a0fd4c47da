"""The selection policy of a run."""

from typing import Any, cast, get_args

from llkd.config.plugins import imported_class
from llkd.config.run import RunConfig
from llkd.core.policies import Policy, PolicyName, PolicySettings, Rule, make_policy
from llkd.core.policy_names import AUTO, DEFAULT_POLICY
from llkd.errors import ConfigError
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout

TRIAL = "trial.json"
"""In the folder of the refinement: what the policies would have done, see llkd/distill/trial.py."""


def read_trial(config: RunConfig) -> dict[str, Any] | None:
    """The figures of the trial; None if there was none."""
    found: dict[str, Any] | None = Folder(RunLayout(config.run_dir).refinement).read_json_if_there(
        TRIAL
    )
    return found


def chosen_policy(config: RunConfig) -> str:
    """The name of the policy: the config's; for `auto` the one that the trial chose, before it the
    default."""
    if config.selection.policy != AUTO:
        return config.selection.policy
    trial = read_trial(config)
    return DEFAULT_POLICY if trial is None else str(trial["chosen"])


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
