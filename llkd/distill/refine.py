"""Refines the pseudo-labels before the first epoch, by probes on the frozen student.

The first replica fits the cross-fitted probes and the bias to a sample of the corpus
(llkd/core/refinement.py). All replicas then compute the features of every row, and write the shards of
the pseudo-labels from the refined distributions.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load, save

from llkd.cluster.actor_pool import run_on_actors
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.refinement import fold_of, with_gold
from llkd.core.sampling import some_rows
from llkd.distill.labelled_rows import frozen_student, labelled_sample, read_labelled
from llkd.distill.policy_choice import TRIAL
from llkd.distill.precision import alone_on_cpus, chosen_precision, scoring_resources
from llkd.distill.probe import read_figures
from llkd.distill.pseudo_labels import pseudo_labels, trained_gold
from llkd.distill.selection import PROBE_ROWS, Selector
from llkd.store.folder import Folder
from llkd.store.schema import GOLD, TEXT, RunLayout
from llkd.teacher.gold import Gold, told_gold

if TYPE_CHECKING:
    from llkd.distill.trial import MeasuredRows
    from llkd.student.refiner import Diagnostics, GoldRows

RESULT, WEIGHTS = "refinement.json", "weights.safetensors"
SHOWN_LABELS = 15
"""Labels whose estimated frequencies the console shows, the most frequent first."""
SMALLEST_SAMPLE = 50
"""Fewer labelled rows are not refined: probes of a few rows know nothing."""


def refine(selector: Selector, calibration: Calibration, tracker: Any) -> None:
    """Write the missing shards of the pseudo-labels from refined distributions, if the config refines
    them.

    Args:
        selector: of the run.
        calibration: of the corpus's labels.
        tracker: the progress tracker.

    Raises:
        StudentError: the student cannot be loaded.
        ActorError: actors died too often.
    """
    config = selector.config
    layout = RunLayout(config.run_dir)
    missing = sorted(set(range(selector.shards)) - Folder(layout.pseudo_labels).shards())
    if layout.is_round or not config.selection.refines or not missing:
        return
    labels = Folder(layout.labels("corpus"))
    rows = [labels.shard_rows(shard) for shard in range(selector.shards)]
    if sum(rows) < SMALLEST_SAMPLE:
        return
    resources = scoring_resources(config)
    precision = chosen_precision(config, resources)
    arguments = (selector, calibration, precision, max(int(resources.get("CPU", 1)), 1))
    tracker.doing.remote("probes that refine the labels")
    tracker.begin.remote("refined labels", sum(rows[shard] for shard in missing), 0, "replica")
    written: Iterator[dict[str, Any]]
    if alone_on_cpus():
        written = map(Refine(*arguments), missing)
    else:  # one replica fits the probes; further ones pay only for a corpus larger than its sample
        on_actors = partial(run_on_actors, Refine, arguments, resources=resources)
        alone = len(missing) if sum(rows) <= PROBE_ROWS else 1
        written = chain(
            on_actors(missing[:alone], pool=(1, 1)),
            on_actors(missing[alone:], pool=config.predict.replicas),
        )
    for item in written:
        tracker.update.remote(f"{item['shard']}", item["rows"])
    tracker.end.remote()
    found = read_refinement(config)
    assert found is not None
    if found["prior"] and found["prior"]["used"]:
        first = sorted(found["prior"]["imposed"].items(), key=lambda item: -item[1])[:SHOWN_LABELS]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in first)
        tracker.note.remote(f"estimated label frequencies in use: {shares}")
    if gold := found["gold"]:
        tracker.note.remote(
            f"of {gold['rows']} rows labelled by hand, the teacher has {gold['teacher_right']} right, the "
            f"refined labels {gold['refined_right']} (cross-fitted)"
        )
    if found["refines"]:
        line = f"refinement changed {found['changed']:.0%} of the teacher's labels"
    else:
        line = (
            "labels are not refined: on the rows with the highest confidence, a linear probe agrees with "
            f"{found['agreement']:.0%} of the labels, below the teacher's confidence of "
            f"{found['confidence']:.0%}"
        )
    tracker.note.remote(line)


def read_refinement(config: RunConfig) -> dict[str, Any] | None:
    """The stored figures of the refinement; None if it is missing or damaged, or there was none."""
    return read_figures(Folder(RunLayout(config.run_dir).refinement), RESULT, WEIGHTS)


def with_estimated_prior(config: RunConfig, calibration: Calibration) -> Calibration:
    """The calibration of labels that are not refined: with the estimated label frequencies, if they
    are in use.

    Args:
        config: the run.
        calibration: of the corpus's labels.
    """
    found = read_refinement(config)
    if found is None or not found["prior"] or not found["prior"]["used"]:
        return calibration
    bias_c = calibration.temperature * np.array(found["prior"]["bias"])
    return replace(calibration, bias_c=calibration.bias_c + bias_c)


def _prior_figures(
    found: "Diagnostics", refines: bool, labels: Sequence[str]
) -> dict[str, Any] | None:
    """The estimate of the label frequencies, as stored; None if there is none.

    Args:
        found: diagnostics of the fit.
        refines: whether labels are refined.
        labels: their names.
    """
    prior = found.prior
    if prior is None:
        return None
    used = refines and prior.accepted
    imposed_c = prior.prior_c if used else prior.imposed_c
    return {
        "estimate": dict(zip(labels, prior.estimate_c.tolist(), strict=True)),
        "divergence": prior.divergence, "agreement": prior.agreement, "used": used,
        "imposed": dict(zip(labels, imposed_c.tolist(), strict=True)),
        "bias": found.prior_bias_c.tolist(),
    }  # fmt: skip


def _gold_figures(gold: "GoldRows", found: "Diagnostics") -> dict[str, Any]:
    """How many rows labelled by hand have the same label by the teacher, and by the combination that
    has not seen them."""
    assert found.gold_mc is not None
    teacher, refined = (
        int((probs_mc.argmax(axis=1) == gold.label_m).sum())
        for probs_mc in (gold.teacher_mc, found.gold_mc)
    )
    return {
        "rows": len(gold.label_m), "teacher_right": teacher, "refined_right": refined,
        "helps": found.gold_helps, "curve": [list(point) for point in found.curve],
    }  # fmt: skip


class Refine:
    """One replica: writes shards of the pseudo-labels from refined distributions. Fits the probes if
    they are missing."""

    def __init__(
        self, selector: Selector, calibration: Calibration, precision: str, threads: int
    ) -> None:
        """
        Args:
            selector: of the run.
            calibration: of the corpus's labels.
            precision: of the frozen student.
            threads: of this process, on a CPU.
        """
        from llkd.student.refiner import Refiner

        self._selector, self._calibration = selector, calibration
        config = selector.config
        self._layout = RunLayout(config.run_dir)
        self._student = frozen_student(config, precision, threads)
        # Two shards arrive at once, to overlap their I/O, but a fast tokenizer is not thread-safe.
        self._turn = threading.Lock()
        # Features of whole shards, until they are written.
        self._sampled: dict[int, np.ndarray] = {}
        self._gold = trained_gold(config)
        folder = Folder(self._layout.refinement)
        if read_refinement(config) is None:
            self._fit(folder)
        self._refiner = Refiner.from_arrays(load(folder.read_bytes(WEIGHTS)))

    def __call__(self, shard: int) -> dict[str, Any]:
        """Write one shard; returns its number and rows."""
        rows, texts, probs_nc = read_labelled(self._layout, self._calibration, shard)
        features_nd = self._sampled.pop(shard, None)
        if features_nd is None and self._refiner.uses_features:
            with self._turn:
                features_nd = self._student.features(texts)
        probs_nc = self._refiner.refine(features_nd, probs_nc, fold_of(texts))
        if self._gold is not None:
            probs_nc = with_gold(probs_nc, self._gold.of(texts))
        table = pseudo_labels(rows, probs_nc, self._selector.keeps_teacher_probs)
        Folder(self._layout.pseudo_labels).write_shard(shard, table)
        return {"shard": shard, "rows": len(texts)}

    def _gold_rows(self, gold: Gold) -> "GoldRows":
        """What the fit of the combination needs of the rows labelled by hand."""
        from llkd.student.refiner import GoldRows

        probs_mc = self._calibration.apply(gold.logprobs_mc)
        features_md = self._student.features(gold.texts)
        return GoldRows(features_md, probs_mc, fold_of(gold.texts), gold.label_m)

    def _test_rows(self) -> "MeasuredRows | None":
        """Rows of the test set, drawn at random; None without one."""
        from llkd.distill.trial import TRIAL_ROWS, MeasuredRows

        if self._selector.config.test is None:
            return None
        folder, texts, labels = Folder(self._layout.rows("test")), list[str](), list[int]()
        for shard in sorted(folder.shards()):
            table = folder.read_shard(shard, [TEXT, GOLD])
            table = table.filter(table[GOLD].is_valid())
            texts += table[TEXT].to_pylist()
            labels += table[GOLD].to_pylist()
        chosen_n = some_rows(len(texts), TRIAL_ROWS, self._selector.config.seed)
        if not len(chosen_n):
            return None
        features_td = self._student.features([texts[i] for i in chosen_n])
        return MeasuredRows(features_td, np.array(labels)[chosen_n])

    def _fit(self, folder: Folder) -> None:
        """Fit the probes to a sample of the labelled rows and store them."""
        from llkd.distill.trial import TRIAL_ROWS, TrialRows, try_policies
        from llkd.student.refiner import fit_refiner

        started, config = time.monotonic(), self._selector.config
        sample = labelled_sample(self._selector, self._calibration, self._student)
        features_nd, teacher_nc, fold_n = sample.features_nd, sample.teacher_nc, sample.fold_n
        rows_of = Folder(self._layout.labels("corpus")).shard_rows
        for shard in np.unique(sample.shard_n).tolist():
            of_shard_n = sample.shard_n == shard
            if of_shard_n.sum() == rows_of(shard):
                self._sampled[shard] = features_nd[of_shard_n]
        gold = told_gold(config)
        gold_rows = self._gold_rows(gold) if gold is not None else None
        learnt = gold_rows if config.gold is not None and config.gold.relabel else None
        fit = partial(
            fit_refiner, beta=config.selection.beta, bias=self._student.bias,
            always=config.selection.refine is True, estimates_prior=config.estimates_prior,
        )  # fmt: skip
        refiner, found = fit(features_nd, teacher_nc, fold_n, gold=learnt, curve=True)
        if self._selector.rivals and not folder.exists(TRIAL):
            chosen_n = some_rows(len(fold_n), TRIAL_ROWS, config.seed)
            known_n = np.full(len(chosen_n), -1)
            if gold is not None:
                known_n = gold.places([sample.texts[i] for i in chosen_n])
            rows = TrialRows(features_nd[chosen_n], teacher_nc[chosen_n], fold_n[chosen_n], known_n)
            trial = try_policies(
                config, self._selector.rivals, rows, gold_rows, self._test_rows(), fit
            )
            if trial is not None:
                folder.write_json(TRIAL, trial)
        refined_nc = refiner.refine(features_nd, teacher_nc, fold_n)
        changed_n = refined_nc.argmax(axis=1) != teacher_nc.argmax(axis=1)
        folder.write_bytes(WEIGHTS, save(refiner.arrays()))
        refines = refiner.uses_features
        figures = {
            "rows": len(fold_n), "refines": refines, "agreement": found.agreement,
            "confidence": found.confidence, "changed": float(changed_n.mean()),
            "prior": _prior_figures(found, refines, config.task.label_names),
            "gold": learnt and _gold_figures(learnt, found),
            "seconds": time.monotonic() - started, "crc32": folder.crc32(WEIGHTS),
        }  # fmt: skip
        folder.write_json(RESULT, figures)
