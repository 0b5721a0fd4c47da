"""The content of metrics.json."""

from typing import Any

from llkd.config.run import RunConfig
from llkd.core.metrics import Evaluation
from llkd.results.evaluate import measure_held_out
from llkd.results.hand.estimates import curve_gain
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import RunLayout


def collect_metrics(
    config: RunConfig,
    found: dict[str, Evaluation],
    estimates: dict[str, Any] | None,
    evaluating: float,
    total: float,
) -> dict[str, Any]:
    """The content of metrics.json, without the keys that do not apply.

    Args:
        config: the run.
        found: the result of `evaluate`.
        estimates: the result of `estimate_on_corpus`.
        evaluating: seconds of the evaluation, including the student's predictions.
        total: seconds of this command.
    """
    layout = RunLayout(config.run_dir)
    labelled = require_complete(Folder(layout.labels("corpus")), "label").results
    distilled = require_complete(Folder(layout.epochs), "distill").results
    ingested = [
        require_complete(Folder(layout.rows(dataset)), "ingest").results
        for dataset in config.datasets
    ]
    names = config.task.label_names
    teacher: dict[str, Any] = {
        "rows": sum(labelled["rows"]),
        "label_mass": labelled["label_mass"],
    }
    if labelled["rows_per_second"] is not None:
        teacher["rows_per_second"] = labelled["rows_per_second"]
    if config.label.in_part:
        teacher["labelled_fraction"] = teacher["rows"] / sum(ingested[0]["rows"])
    metrics: dict[str, Any] = {"teacher": teacher}
    if "teacher.corpus" in found:
        teacher["corpus"] = figures_of(found["teacher.corpus"], names, auroc=True)
    if "student.test" in found:
        teacher["test"] = figures_of(found["teacher.test"], names, auroc=False)
        metrics["student"] = {"test": figures_of(found["student.test"], names, auroc=False)}
    if config.student.validation_fraction > 0:
        by_epoch = measure_held_out(config, distilled["epochs"])
        metrics.setdefault("student", {})["held_out"] = by_epoch
    if distilled["probe"] is not None:
        metrics["probe"] = {"kept": distilled["keeps_probe"]}
        if distilled["probe"]["validation"] is not None:
            metrics["probe"]["held_out"] = distilled["probe"]["validation"]
        if "probe.test" in found:
            metrics["probe"]["test"] = figures_of(found["probe.test"], names, auroc=False)
    metrics["selection"] = {
        "rows": distilled["rows"],
        "epochs": distilled["epochs"],
        "row_visits_fraction": distilled["row_visits_fraction"],
        "steps": sum(stats["steps"] for stats in distilled["stats"]),
        "unique_rows_fraction": distilled["unique_rows_fraction"],
    }
    if "relabelled_fraction" in distilled:
        metrics["selection"]["relabelled_fraction"] = distilled["relabelled_fraction"]
    if distilled.get("prior", {}).get("used"):
        metrics["selection"]["label_frequencies"] = distilled["prior"]["imposed"]
    if "trial" in distilled:
        metrics["policies"] = distilled["trial"]["policies"]
    if "gold" in distilled:
        metrics["gold"] = distilled["gold"]
    if estimates is not None:
        metrics["estimates"] = _with_gain(config, estimates, distilled.get("gold"))
    seconds = {
        "ingest": sum(entry["seconds"] for entry in ingested),
        "label": labelled["seconds"],
        "distill": distilled["seconds"],
        "evaluate": evaluating,
    }
    metrics["seconds"] = {**seconds, "total": max(sum(seconds.values()), total)}
    return metrics


def _with_gain(
    config: RunConfig, estimates: dict[str, Any], gold: dict[str, Any] | None
) -> dict[str, Any]:
    """The estimates, and how many more labels would be right with more rows labelled by hand."""
    if gold is None or "more" not in estimates or config.gold is None:
        return estimates
    more = estimates["more"]
    gain = curve_gain(gold["curve"], more["rows"] * (1 - config.gold.judge))
    return {**estimates, "more": {**more, "right_labels": gain}}


def figures_of(evaluation: Evaluation, names: list[str], auroc: bool) -> dict[str, Any]:
    """The figures of an evaluation, in total and by label.

    Args:
        evaluation: of a teacher or a student.
        names: the label names.
        auroc: whether to include AUROC, if it is defined, and risk by coverage.
    """
    figures: dict[str, Any] = {
        "rows": evaluation.rows,
        "accuracy": evaluation.accuracy,
        "macro_f1": evaluation.macro_f1,
        "ece": evaluation.ece,
    }
    if auroc and evaluation.auroc == evaluation.auroc:
        figures["auroc"] = evaluation.auroc
    if auroc:
        figures["risk_coverage"] = {
            f"{tenths / 10:.1f}": evaluation.risk_at(tenths / 10) for tenths in range(1, 11)
        }
    per_class = evaluation.per_class
    figures["per_class"] = {
        name: {key: values[i].item() for key, values in per_class.items()}
        for i, name in enumerate(names)
    }
    return figures
