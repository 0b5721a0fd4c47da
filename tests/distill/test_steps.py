"""The optimiser steps of a run of few rows, also when it resumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import read_stats
from llkd.distill.worker import EpochLoop
from llkd.errors import StudentError
from llkd.store.schema import RunLayout
from tests.conftest import MadeRun, run

pytestmark = pytest.mark.usefixtures("local_ray", "in_process", "no_report")

SECTIONS: dict[str, Any] = {
    "student": {"epochs": 3, "min_steps": 240}, "selection": {"policy": "all"}
}  # fmt: skip


def tensors(config: RunConfig, file: str) -> dict[str, np.ndarray]:
    """A file of the last checkpoint."""
    return load_file(Path(RunLayout(config.run_dir).checkpoints, "epoch-0002", file))


def test_few_rows_are_passed_over_until_the_steps_are_taken_and_a_resumed_run_takes_as_many(
    tmp_path: Path, labelled_run: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, broken = (
        labelled_run.copy(tmp_path / name).config(**SECTIONS) for name in ("whole", "broken")
    )
    run("distill", config)
    stats = [read_stats(config, epoch) for epoch in range(3)]
    batches = -(-stats[0]["selected"] // 16)
    assert [(entry["passes"], entry["steps"]) for entry in stats] == [(3, 3 * batches)] * 3
    moments = tensors(config, "optimizer.safetensors")
    taken = {float(value) for name, value in moments.items() if name.endswith("|step")}
    assert taken == {9 * batches}  # as the optimiser itself counts them

    train = EpochLoop._train

    def fail(self: EpochLoop, epoch: int, stats: dict[str, Any]) -> dict[str, Any]:
        if epoch == 2:
            raise StudentError("A failure in the third epoch.")
        return train(self, epoch, stats)

    with monkeypatch.context() as patched:
        patched.setattr(EpochLoop, "_train", fail)
        with pytest.raises(StudentError, match="third epoch"):
            run("distill", broken)
    run("distill", broken)
    assert read_stats(broken, 2)["steps"] == stats[2]["steps"]
    ours, theirs = (tensors(c, "model.safetensors") for c in (broken, config))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
