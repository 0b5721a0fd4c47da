"""The policy that a run follows, with what its trial (llkd/distill/trial.py) says."""

from typing import Any

from llkd.config.run import RunConfig
from llkd.core.policy_names import AUTO, DEFAULT_POLICY, PolicyName
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout

CANDIDATES: tuple[PolicyName, ...] = (
    DEFAULT_POLICY, "refined", "small_loss", "teacher_confidence", "all", "random",
)  # fmt: skip
"""Policies that are tried."""
TRIAL = "trial.json"
"""In the folder of the refinement: what the policies would have done."""


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
