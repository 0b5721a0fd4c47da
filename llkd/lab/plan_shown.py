"""A plan, as it is printed: what the sample told, and what the whole run takes."""

import statistics

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llkd.cluster.progress import duration
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration, fit_batch_bias, marginal
from llkd.lab.cost_model import Estimate, Stage, shards_advice
from llkd.lab.plan_sample import Sample
from llkd.store.folder import portable_path

BAR = 32
"""Characters of the longest bar."""
ONE_LABEL_SHARE = 0.8
LOW_MASS = 0.5
MOST_CUT = 0.5


def show_plan(config: RunConfig, sample: Sample, total: int, console: Console) -> None:
    """Print it."""
    say = console.print
    for number, prompt in enumerate(sample.prompts):
        say(f"\n[bold]Prompt {number + 1}[/]")
        say(escape(prompt), markup=True)
    say()
    say(f"Teacher   {escape(portable_path(config.teacher.model))}")
    say(f"Labels    said by {escape(sample.verbalizer)}")
    if sample.prompt_tokens:
        say(f"Prompts   {_spread(sample.prompt_tokens)} tokens")
        say(
            f"Texts     {_spread(sample.text_tokens)} tokens, {cut_share(sample):.0%} are cut to "
            f"{sample.most_text_tokens}"
        )
    rate = sample.rows / sample.seconds
    tokens = sample.computed_tokens / sample.seconds
    speed = f", {tokens:,.0f} tokens/s beside the shared beginning" if tokens else ""
    say(f"Speed     {rate:,.1f} rows/s a replica{speed}")
    replicas = config.teacher.replicas[1]
    hours = total * config.label.budget / rate / replicas / 3600
    price = config.plan.price_per_hour
    cost = f", {hours * replicas * price:,.2f} at {price:,.2f} a replica and hour" if price else ""
    if config.label.in_part:
        say(
            f"Budget    {total * config.label.budget:,.0f} rows in {config.label.rounds} round(s); "
            f"{config.label.rounds - 1} student(s) are trained and predict the corpus in between, "
            "which is not counted"
        )
    say(f"In all    {duration(hours * 3600)} with {replicas} replicas{cost}")
    if sample.refused:
        say(f"Refused   {sample.refused} of {sample.rows} rows")
    if not sample.logprobs_nc:
        return
    logprobs_nc = np.array(sample.logprobs_nc)
    probs_nc = _calibrated(config, logprobs_nc)
    shares = np.bincount(probs_nc.argmax(axis=1), minlength=probs_nc.shape[1]) / len(probs_nc)
    say("\n[bold]Labels, calibrated on the sample[/]")
    _histogram(console, config.task.label_names, shares)
    say("\n[bold]Confidence[/]")
    bins = np.histogram(probs_nc.max(axis=1), bins=10, range=(0, 1))[0] / len(probs_nc)
    names = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]
    _histogram(console, names, bins)
    for warning in warnings_of(config, sample, probs_nc):
        say(f"[bold yellow]Warning[/]   {escape(warning)}")


def warnings_of(config: RunConfig, sample: Sample, probs_nc: np.ndarray) -> list[str]:
    """What should make one stop before labelling it all."""
    found = []
    shares = np.bincount(probs_nc.argmax(axis=1), minlength=probs_nc.shape[1]) / len(probs_nc)
    if shares.max() > ONE_LABEL_SHARE:
        name = config.task.label_names[int(shares.argmax())]
        found.append(
            f"{shares.max():.0%} of the rows are labelled {name!r}. Give examples, describe the "
            "labels, or state teacher.prior if that label is that frequent."
        )
    mass = float(np.exp(np.array(sample.logprobs_nc)).sum(axis=1).mean())
    if mass < LOW_MASS:
        found.append(
            f"The teacher gives the labels {mass:.0%} of its probability: it would rather say "
            "something else. Try the other teacher.prompt_format, examples, or another name for "
            "the labels."
        )
    if cut_share(sample) > MOST_CUT:
        found.append(
            f"{cut_share(sample):.0%} of the texts are cut to {sample.most_text_tokens} tokens. "
            "Raise teacher.max_text_tokens, or try teacher.truncation head_tail."
        )
    return found


def cut_share(sample: Sample) -> float:
    """Share of the texts that do not fit."""
    cut = sum(tokens > sample.most_text_tokens for tokens in sample.text_tokens)
    return cut / max(len(sample.text_tokens), 1)


def _calibrated(config: RunConfig, logprobs_nc: np.ndarray) -> np.ndarray:
    classes = logprobs_nc.shape[1]
    uniform_c = np.full(classes, 1 / classes)
    prior = config.teacher.prior
    prior_c = uniform_c if prior is None else np.array([prior[n] for n in config.task.labels])
    bias_c = fit_batch_bias(lambda b: marginal(logprobs_nc, b), prior_c / prior_c.sum())
    return Calibration(bias_c).apply(logprobs_nc)


def _spread(values: list[int]) -> str:
    return f"{statistics.median(values):.0f} (95 %: {np.quantile(values, 0.95):.0f})"


def _histogram(console: Console, names: list[str], shares: np.ndarray) -> None:
    width = max(map(len, names))
    for name, share in zip(names, shares, strict=True):
        bar = "█" * round(BAR * float(share) / max(float(shares.max()), 1e-9))
        console.print(f"  {escape(name):{width}} {float(share):6.1%} {bar}")


def show_estimate(found: Estimate, console: Console) -> None:
    """Print a table of the stages, and what the run takes beside them."""
    setup = found.setup
    table = Table(title=f"A whole run, {setup.rows:,} rows", title_justify="left")
    for column in ("stage", "rows", "tokens", "on", "rows/s each", "time", "cost", "files",
                   "stored", "requests"):  # fmt: skip
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in found.stages:
        table.add_row(
            stage.name, short(stage.rows), short(stage.tokens), _holders(stage),
            short(stage.rate), duration(stage.seconds), _money(stage.cost), short(stage.files),
            f"{short(stage.bytes)}B" if stage.bytes else "", short(stage.reads + stage.writes),
        )  # fmt: skip
    table.add_section()
    requests = found.total("reads") + found.total("writes")
    table.add_row(
        "all", "", short(found.total("tokens")), "", "", duration(found.total("seconds")),
        _money(found.cost), short(found.total("files")), f"{short(found.total('bytes'))}B",
        short(requests),
    )  # fmt: skip
    console.print()
    console.print(table)
    console.print(
        f"Shards    {setup.shards:,} of {setup.rows_per_shard:,} rows; the driver takes "
        f"{duration(found.driver_seconds)} of a CPU and {found.driver_mib:,.0f} MiB"
    )
    if setup.student_parameters:
        # Weights and two moments of each, in float32; then the weights alone.
        size = setup.student_parameters * 4
        console.print(f"Student   {short(size)}B, a checkpoint {short(3 * size)}B")
    console.print(
        "Left out  engines and workers that start, models that load: minutes, whatever the corpus"
    )
    if advice := shards_advice(setup):
        console.print(f"[bold yellow]Warning[/]   {escape(advice)}")


def _holders(stage: Stage) -> str:
    """Who does it: `2 GPU`, or `2 x 8 GPU` where each holds several."""
    each = "" if stage.held == 1 else f"x {short(stage.held)} "
    return f"{stage.workers} {each}{stage.on}"


def short(value: float) -> str:
    """A number of three digits and a thousand's letter; empty for 0."""
    if not value:
        return ""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g} {letter}"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:,.2f}"
