"""A noisy teacher with its features, and the selector of a labelled run."""

from typing import Any

import numpy as np

from llkd.core.calibration import Calibration
from llkd.distill.policy import policy_of
from llkd.distill.selection import Selector
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import RunLayout, shard_starts
from llkd.teacher.calibrate import calibrate
from tests.conftest import MadeRun

ROWS, CLASSES = 600, 3


def noisy_teacher(noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features, distributions of a teacher, gold): a linear rule, and labels drawn wrong at random."""
    random = np.random.default_rng(0)
    features_nd = random.normal(size=(ROWS, 8)).astype(np.float32)
    gold_n = (features_nd @ random.normal(size=(8, CLASSES))).argmax(axis=1)
    said_n = np.where(random.random(ROWS) < noise, random.integers(0, CLASSES, ROWS), gold_n)
    return features_nd, 0.55 * np.eye(CLASSES)[said_n] + 0.15, gold_n


def of_run(run: MadeRun, **sections: Any) -> tuple[Selector, Calibration]:
    config = run.config(**sections)
    rows = require_complete(Folder(RunLayout(config.run_dir).rows("corpus")), "ingest")
    selector = Selector(config, shard_starts(rows.results["rows"]), policy_of(config))
    return selector, calibrate(config)
