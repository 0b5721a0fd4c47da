"""The plan on the console: a teacher's labels of the sample, and the estimate of the whole run."""

import statistics

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llkd.cluster.progress import duration
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration, fit_batch_bias, marginal
from llkd.lab.cost_model import Estimate, Stage
from llkd.lab.plan.teacher import TeacherSample
from llkd.store.folder import portable_path

BAR = 32
"""Characters of the longest bar."""
ANSWER = "(the answer begins here)"
MAX_LABEL_SHARE = 0.8
MIN_LABEL_MASS = 0.5
MAX_CUT_SHARE = 0.5


def show_teacher(config: RunConfig, sample: TeacherSample, console: Console) -> None:
    """Print prompts, speed, labels and confidence of the sample, and the warning signs."""
    print_ = console.print
    for number, prompt in enumerate(sample.prompts, start=1):
        print_(f"\n[bold]Prompt {number}[/]")
        print_(f"{escape(prompt)}[bold green]{ANSWER}[/]")
    print_()
    print_(f"Teacher   {escape(portable_path(config.teacher.model))}")
    print_(f"Labels    read by {escape(sample.verbalizer)}")
    if sample.prompt_tokens:
        print_(f"Prompts   {_spread(sample.prompt_tokens)} tokens")
        print_(
            f"Texts     {_spread(sample.text_tokens)} tokens, {sample.cut_share:.0%} are cut to "
            f"{sample.max_text_tokens}"
        )
    rate = sample.rows / sample.seconds
    tokens = sample.computed_tokens / sample.seconds
    speed = f", {tokens:,.0f} tokens/s without the shared prefix" if tokens else ""
    print_(f"Speed     {rate:,.1f} rows/s a replica{speed}")
    if sample.refused:
        print_(f"Refused   {sample.refused} of {sample.rows} rows")
    if not sample.logprobs_nc:
        return
    print_(f"Answers   the labels have {label_mass(sample):.2%} of the teacher's probability")
    probs_nc = _calibrated(config, np.array(sample.logprobs_nc))
    print_("\n[bold]Labels, calibrated on the sample[/]")
    _print_histogram(console, config.task.label_names, _label_shares(probs_nc))
    print_("\n[bold]Confidence[/]")
    bins = np.histogram(probs_nc.max(axis=1), bins=10, range=(0, 1))[0] / len(probs_nc)
    names = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]
    _print_histogram(console, names, bins)
    for warning in warnings_of(config, sample, probs_nc):
        print_(f"[bold yellow]Warning[/]   {escape(warning)}")


def warnings_of(config: RunConfig, sample: TeacherSample, probs_nc: np.ndarray) -> list[str]:
    """Reasons to stop before the whole corpus is labelled."""
    found = []
    share_c = _label_shares(probs_nc)
    if share_c.max() > MAX_LABEL_SHARE:
        name = config.task.label_names[int(share_c.argmax())]
        found.append(
            f"{share_c.max():.0%} of the rows are labelled {name!r}. Give examples, describe the "
            "labels, or set teacher.prior if that label is that frequent."
        )
    mass = label_mass(sample)
    if mass < MIN_LABEL_MASS:
        found.append(
            f"The teacher gives the labels {mass:.0%} of its probability: it would rather answer "
            "something else. Try the other teacher.prompt_format, examples, or other names for "
            "the labels."
        )
    if sample.cut_share > MAX_CUT_SHARE:
        found.append(
            f"{sample.cut_share:.0%} of the texts are cut to {sample.max_text_tokens} tokens. "
            "Raise teacher.max_text_tokens, or try teacher.truncation head_tail."
        )
    return found


def label_mass(sample: TeacherSample) -> float:
    """The mean probability of all labels together."""
    return float(np.exp(np.array(sample.logprobs_nc)).sum(axis=1).mean())


def _label_shares(probs_nc: np.ndarray) -> np.ndarray:
    return np.bincount(probs_nc.argmax(axis=1), minlength=probs_nc.shape[1]) / len(probs_nc)


def _calibrated(config: RunConfig, logprobs_nc: np.ndarray) -> np.ndarray:
    classes = logprobs_nc.shape[1]
    uniform_c = np.full(classes, 1 / classes)
    prior = config.teacher.prior
    prior_c = uniform_c if prior is None else np.array([prior[n] for n in config.task.labels])
    bias_c = fit_batch_bias(lambda b: marginal(logprobs_nc, b), prior_c / prior_c.sum())
    return Calibration(bias_c).apply(logprobs_nc)


def _spread(values: list[int]) -> str:
    return f"{statistics.median(values):.0f} (95 %: {np.quantile(values, 0.95):.0f})"


def _print_histogram(console: Console, names: list[str], shares: np.ndarray) -> None:
    width = max(map(len, names))
    for name, share in zip(names, shares, strict=True):
        bar = "█" * round(BAR * float(share) / max(float(shares.max()), 1e-9))
        console.print(f"  {escape(name):{width}} {float(share):6.1%} {bar}")


def show_estimate(estimate: Estimate, console: Console) -> None:
    """Print a table of the stages, then shards, driver and student."""
    workload = estimate.workload
    console.print()
    console.print(_table(estimate))
    console.print(
        f"Shards    {estimate.shards:,} of {estimate.config.corpus.rows_per_shard:,} rows; the "
        f"driver takes {duration(estimate.driver_seconds)} of a CPU and "
        f"{estimate.driver_mib:,.0f} MiB"
    )
    if workload.student_parameters:
        # A checkpoint holds weights and two moments of each, in float32.
        size = workload.student_parameters * 4
        console.print(f"Student   {short(size)}B, a checkpoint {short(3 * size)}B")
    console.print("Left out  engine starts and model loads: minutes, whatever the corpus")
    advice = estimate.shard_size.advice(estimate.config.corpus.rows_per_shard)
    if advice is not None:
        console.print(f"[bold yellow]Warning[/]   {escape(advice)}")


def _table(estimate: Estimate) -> Table:
    table = Table(title=f"A whole run, {estimate.workload.rows:,} rows", title_justify="left")
    for column in ("stage", "rows", "tokens", "on", "rows/s each", "time", "cost", "files",
                   "stored", "requests"):  # fmt: skip
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in estimate.stages:
        table.add_row(
            stage.name, short(stage.rows), short(stage.tokens), _resources(stage),
            short(stage.rate), duration(stage.seconds), _money(stage.cost), short(stage.files),
            f"{short(stage.bytes)}B" if stage.bytes else "", short(stage.reads + stage.writes),
        )  # fmt: skip
    table.add_section()
    total = estimate.total
    table.add_row(
        "all", "", short(total("tokens")), "", "", duration(total("seconds")),
        _money(estimate.cost), short(total("files")), f"{short(total('bytes'))}B",
        short(total("reads") + total("writes")),
    )  # fmt: skip
    return table


def _resources(stage: Stage) -> str:
    """`2 GPU`, or `2 x 8 GPU` if each worker holds several."""
    each = "" if stage.held == 1 else f"x {short(stage.held)} "
    return f"{stage.workers} {each}{stage.on}"


def short(value: float) -> str:
    """Three significant digits with a metric prefix; empty for 0."""
    if not value:
        return ""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g} {letter}"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:,.2f}"
