"""The linear probe beside the student, and the choice between the two.

A head on the frozen encoder, fitted to the same pseudo-labels in seconds (llkd/student/probe.py). A
fine-tuned student below it has hardly begun to learn, or has learnt its teacher's mistakes.
"""

import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from llkd.config.run import RunConfig
from llkd.core.holdout import Validation
from llkd.core.policies.base import Signals
from llkd.distill.selection import Selector, sampled
from llkd.errors import DamageError
from llkd.store.arrays import fixed_lists
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import PROBS, ROW, TEXT, RunLayout

RESULT, HEAD = "probe.json", "head.safetensors"


def fit(
    selector: Selector,
    validation: Validation | None,
    device: Any,
    bfloat16: bool,
) -> None:
    """Fit the probe and store it with its predictions of the test set; nothing is done if it is there.

    Args:
        selector: of the run.
        validation: the rows held out.
        device: to compute the features on.
        bfloat16: the precision of scoring.

    Raises:
        StudentError: the student cannot be loaded.
    """
    from llkd.student.model import load_student
    from llkd.student.probe import FrozenStudent, fit_probe

    config = selector.config
    if read_probe(config) is not None:
        return
    started = time.monotonic()
    layout, student = RunLayout(config.run_dir), config.student
    tokenizer, model = load_student(student, config.task.label_names)
    frozen = FrozenStudent(
        tokenizer, model, max_length=student.max_length, bfloat16=bfloat16, device=device
    )
    texts, label_n = _texts_and_labels(selector)
    targets_nc = np.eye(selector.classes)[label_n]
    probe = fit_probe(frozen.features(texts), targets_nc, config.seed, frozen.bias)
    figures = None
    if validation is not None:
        figures = validation.measure(probe.probabilities(frozen.features(validation.texts)))
    if config.test is not None:
        rows, predicted = Folder(layout.rows("test")), Folder(layout.probe_predictions)
        for shard in range(len(require_complete(rows, "ingest").results["rows"])):
            table = rows.read_shard(shard, [ROW, TEXT])
            probs_nc = probe.probabilities(frozen.features(table[TEXT].to_pylist()))
            columns = {ROW: table[ROW], PROBS: fixed_lists(probs_nc)}
            predicted.write_shard(shard, pa.table(columns))
    folder = Folder(layout.probe)
    folder.write_bytes(HEAD, save(probe.arrays()))
    result = {
        "rows": len(texts), "penalty": probe.penalty, "validation": figures,
        "crc32": folder.crc32(HEAD), "seconds": time.monotonic() - started,
    }  # fmt: skip
    folder.write_json(RESULT, result)


def _texts_and_labels(selector: Selector) -> tuple[list[str], np.ndarray]:
    """(texts, pseudo-labels) of a sample of the rows, without those held out."""
    texts: list[str] = []
    labels = []
    rows = Folder(RunLayout(selector.config.run_dir).rows("corpus"))

    def candidates(shard: int) -> tuple[np.ndarray, tuple[np.ndarray, Signals]]:
        row_n, signals = selector.signals(shard, None)
        return np.flatnonzero(~selector.held(shard, row_n)), (row_n, signals)

    for shard, chosen, (row_n, signals) in sampled(selector, candidates):
        table = rows.read_shard(shard, [TEXT])
        texts += table[TEXT].take(pa.array(row_n[chosen])).to_pylist()
        labels.append(signals.label_n[chosen])
    return texts, np.concatenate(labels)


def read_probe(config: RunConfig) -> dict[str, Any] | None:
    """The stored probe's figures; None if it is missing or damaged."""
    return read_figures(Folder(RunLayout(config.run_dir).probe), RESULT, HEAD)


def read_figures(folder: Folder, figures: str, weights: str) -> dict[str, Any] | None:
    """The figures stored beside weights; None if either file is missing or damaged."""
    try:
        found: dict[str, Any] | None = folder.read_json_if_there(figures)
        if found is None or folder.crc32(weights) != found["crc32"]:
            return None
    except (DamageError, KeyError, TypeError):
        return None
    return found


def put_into(config: RunConfig, model: Any) -> None:
    """Make the stored probe the head of a student with the weights that it came with."""
    import torch

    from llkd.student.model import head_of

    tensors = load(Folder(RunLayout(config.run_dir).probe).read_bytes(HEAD))
    head = head_of(model)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(tensors["weight"]))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(tensors["bias"]))


def keeps_probe(config: RunConfig, student: dict[str, Any] | None) -> bool:
    """Whether the probe is the result, and not the fine-tuned student.

    It is where `student.keep` says so; for `best`, where it agrees better with the teacher on the rows
    held out, by more than twice the standard error of the student's agreement.

    Args:
        config: the run; a round of labelling has no probe.
        student: the figures of the chosen epoch's student on the rows held out; None without any.
    """
    probe = read_probe(config)
    if probe is None:
        return False
    if config.student.keep != "best" or student is None:
        return config.student.keep == "probe"
    error = math.sqrt(student["accuracy"] * (1 - student["accuracy"]) / student["rows"])
    return bool(probe["validation"]["macro_f1"] > student["macro_f1"] + 2 * error)
