"""Calibrates the labels from their stored log-probabilities.

Changing `teacher.calibration` takes seconds and labels nothing again.
"""

from functools import partial
from typing import Any

import numpy as np

from llkd.config.run import RunConfig
from llkd.core.acquisition import RandomSlice
from llkd.core.calibration import (
    Calibration,
    contextual_bias,
    fit_batch_bias,
    fit_temperature,
    marginal,
    no_calibration,
)
from llkd.errors import DataError
from llkd.store.arrays import matrix
from llkd.store.folder import Folder, portable_path
from llkd.store.manifest import Manifest, require_complete
from llkd.store.schema import LOGPROBS, ROW, RunLayout, shard_starts
from llkd.teacher.gold import told_gold

CALIBRATION = "calibration.json"
RANDOM_SLICE = "random_slice"
"""Key in the results of partial labelling: which of the rows are a random sample."""
CALIBRATION_VALUES = 2**25
"""Maximum log-probabilities used for calibration: 128 MiB."""


def calibrate(config: RunConfig) -> Calibration:
    """The calibration that the config selects, fitted and stored on first use.

    Raises:
        IncompleteError: the corpus is not labelled.
        DataError: there is no data to fit.
    """
    folder = Folder(RunLayout(config.run_dir, config.teacher_number).labels("corpus"))
    settings = {**calibration_settings(config), "labels": config.task.label_names}
    labelled = require_complete(folder, "label")
    settings["upstream"] = labelled.fingerprint
    found = folder.read_json_if_there(CALIBRATION)
    if found is not None and found["settings"] == settings:
        return Calibration(np.asarray(found["log_bias"]), found["temperature"])
    calibration = _fit(config, folder, labelled)
    folder.write_json(
        CALIBRATION,
        {
            "settings": settings,
            "log_bias": calibration.bias_c.tolist(),
            "temperature": calibration.temperature,
        },
    )
    return calibration


def calibration_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that determine the calibration, given the labels."""
    if config.teachers:
        return {"teacher.calibration": "that of each of the teachers"}
    teacher, prior = config.teacher, config.teacher.prior
    settings: dict[str, Any] = {"teacher.calibration": teacher.calibration}
    if teacher.calibration in ("batch", "temperature"):
        settings["teacher.prior"] = prior and {name: prior[name] for name in config.task.labels}
    if teacher.calibration == "temperature":
        assert config.gold is not None
        settings["gold.judge"] = config.gold.judge
        settings["gold.path"] = [portable_path(path) for path in config.gold.paths]
    return settings


def _fit(config: RunConfig, folder: Folder, labelled: Manifest) -> Calibration:
    classes = len(config.task.labels)
    method = config.teacher.calibration
    if method == "none" or config.teachers:  # combined labels are already calibrated
        return no_calibration(classes)
    if method == "contextual":
        content_free = Folder(
            RunLayout(config.run_dir, config.teacher_number).labels("content_free")
        )
        logprobs_mc = matrix(content_free.read_shard(0, [LOGPROBS])[LOGPROBS])
        if len(logprobs_mc) == 0:
            raise DataError(
                "teacher.calibration contextual needs the teacher's answers to content-free "
                "texts, which this engine does not give",
                "Use batch.",
            )
        return Calibration(contextual_bias(logprobs_mc))
    corpus_marginal = partial(marginal, _sample(config, folder, labelled))
    bias_c = fit_batch_bias(corpus_marginal, _prior(config))
    if method == "batch":
        return Calibration(bias_c)
    gold = told_gold(config)
    if gold is None:
        raise DataError(
            "teacher.calibration temperature is fitted to labelled rows, and gold holds none",
            "Fill in its label column, or use batch.",
        )
    return Calibration(bias_c, fit_temperature(gold.logprobs_mc, bias_c, gold.label_m))


def _prior(config: RunConfig) -> np.ndarray:
    """The share of each class in the corpus, shape (C,)."""
    prior = config.teacher.prior
    if prior is None:
        return np.full(len(config.task.labels), 1 / len(config.task.labels))
    share_c = np.array([prior[name] for name in config.task.labels])
    return np.asarray(share_c / share_c.sum())


def _sample(config: RunConfig, folder: Folder, labelled: Manifest) -> np.ndarray:
    """Log-probabilities of whole shards spread evenly over the corpus, shape (N, C).

    Uses as many shards as fit into CALIBRATION_VALUES. The bias is a mean over rows, and millions of
    rows estimate it precisely enough. Of a partly labelled corpus only the randomly chosen rows
    count: the marginal of actively chosen rows is not that of the corpus.
    """
    shards = len(folder.shards())
    first = matrix(folder.read_shard(0, [LOGPROBS])[LOGPROBS])
    count = min(max(CALIBRATION_VALUES // max(first.size, 1), 1), shards)
    chosen = np.unique(np.linspace(0, shards - 1, count).round().astype(int)).tolist()
    kept = labelled.results.get(RANDOM_SLICE)
    if kept is None:
        parts = [matrix(folder.read_shard(shard, [LOGPROBS])[LOGPROBS]) for shard in chosen]
    else:
        random, starts = RandomSlice(**kept), _starts(config)
        parts = [_logprobs_of(random, folder, shard, starts[shard]) for shard in chosen]
    return np.concatenate([part.reshape(-1, len(config.task.labels)) for part in parts])


def _starts(config: RunConfig) -> tuple[int, ...]:
    """The position of each shard's first row in the corpus."""
    rows = Folder(RunLayout(config.run_dir).rows("corpus"))
    return shard_starts(require_complete(rows, "ingest").results["rows"])


def _logprobs_of(random: RandomSlice, folder: Folder, shard: int, start: int) -> np.ndarray:
    """The log-probabilities of a shard's randomly chosen rows, shape (N, C)."""
    table = folder.read_shard(shard, [ROW, LOGPROBS])
    position_n = start + table[ROW].to_numpy().astype(np.int64)
    return matrix(table[LOGPROBS])[random.rows(position_n)]
