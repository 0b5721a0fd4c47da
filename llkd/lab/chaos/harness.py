"""Starts runs, injects faults, restarts the runs, and checks their results.

The cluster is the one that RAY_ADDRESS names, or one of several nodes on this machine, whose lost
nodes are replaced.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from rich.console import Console
from rich.markup import escape

from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.cluster.progress import duration
from llkd.config.load import dump_config
from llkd.config.run import RunConfig
from llkd.errors import ChaosError, ConfigError
from llkd.lab.chaos.cluster import LocalCluster
from llkd.lab.chaos.injector import (
    MARK,
    REPLY_SECONDS,
    Injector,
    marked_environment,
    other_jobs,
    processes_with,
)
from llkd.lab.chaos.outcome import WHOLE_NODES, Fault, RunOutcome
from llkd.lab.chaos.verify import problems
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout

GAP_SECONDS = (1.0, 8.0)
"""Range of the time between two faults of a run, drawn uniformly."""

STALLED_SECONDS = 1800.0
"""A start of a run that takes longer counts as hung: far more than a slow and busy machine needs for a
corpus that is small enough for fault injection."""

MAX_STARTS = 40
"""Starts of one run."""

UNDISTURBED = "undisturbed"
"""Name of the run without faults, with which the others are compared."""

_OURS = re.compile(rf"(\d{{2,}}|{UNDISTURBED})((-\d{{2,}})?\.(log|yaml))?")
"""Names of the files of a harness in `<run_dir>/chaos`: runs, their configs, a log of each start."""


@dataclass(frozen=True)
class FaultPlan:
    """The faults to inject."""

    kills: int
    """Faults over all runs."""
    runs: int
    """Runs that share them."""
    kinds: Sequence[str]
    """See KINDS."""
    seed: int
    """Of kinds, times and victims."""

    def of_each_run(self) -> list[list[str]]:
        """The kinds for each run; over all runs, the counts of two kinds differ by one at most."""
        random = np.random.default_rng(self.seed)
        dealt: list[str] = []
        while len(dealt) < self.kills:
            dealt += [str(kind) for kind in random.permutation(list(self.kinds))]
        return [dealt[: self.kills][number :: self.runs] for number in range(self.runs)]


@dataclass(frozen=True)
class Harness:
    """Runs of a config on a cluster into which faults are injected."""

    config: RunConfig
    injector: Injector
    cluster: LocalCluster | None
    """None for a cluster that RAY_ADDRESS names: its autoscaler replaces lost nodes."""
    address: str
    mark: str
    """See `marked_environment`."""
    folder: Path
    """On this machine: the configs and logs of the runs."""
    console: Console

    def of_run(self, name: str) -> RunConfig:
        """The config of one run."""
        run_dir = f"{RunLayout(self.config.run_dir).root}/chaos/{name}"
        return self.config.model_copy(update={"run_dir": run_dir})

    def undisturbed(self) -> RunConfig:
        """Finish a run without faults; returns its config.

        Raises:
            ChaosError: it fails, or hangs.
        """
        config = self.of_run(UNDISTURBED)
        with self._started(config, 1) as (process, log):
            try:
                status = process.wait(timeout=STALLED_SECONDS)
            except subprocess.TimeoutExpired:
                raise ChaosError(
                    f"The run does not end within {STALLED_SECONDS:.0f} s even without faults; the end "
                    f"of its log: {_last_line(log)}",
                    f"Take a smaller corpus, or see {log}.",
                ) from None
        if status:
            raise ChaosError(
                f"The run fails even without faults, with status {status}",
                f"See {log}.",
            )
        return config

    def run_with_faults(self, number: int, kinds: Sequence[str], seed: int) -> RunOutcome:
        """Finish one run, with one fault of each of these kinds, in random order, while it lasts.

        Args:
            number: of the run.
            kinds: of the faults; a kind may repeat.
            seed: of the times and the victims.
        """
        random = np.random.default_rng([seed, number])
        config, outcome, waiting = self.of_run(f"{number:02d}"), RunOutcome(number), list(kinds)
        began = time.monotonic()
        while not outcome.statuses or outcome.statuses[-1] != 0:
            if outcome.starts == MAX_STARTS:
                outcome.problems.append(f"does not end after {MAX_STARTS} starts")
                break
            outcome.starts += 1
            with self._started(config, outcome.starts) as (process, log):
                status = self._inject_into(process, outcome, waiting, random)
            if status is None:
                outcome.problems.append(
                    f"hung for {STALLED_SECONDS:.0f} s after {_last_line(log)}; see {log}"
                )
                break
            outcome.statuses.append(status)
            if status not in (0, -9) and not _names_error(log):
                outcome.problems.append(
                    f"ended with status {status} and no error in its log; see {log}"
                )
        outcome.seconds, outcome.missed = time.monotonic() - began, waiting
        return outcome

    @contextlib.contextmanager
    def _started(
        self, config: RunConfig, start: int
    ) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """Start a run; yields its process and its log. The process is killed at the end of the block."""
        name = config.run_dir.rsplit("/", 1)[-1]
        settings, log = self.folder / f"{name}.yaml", self.folder / f"{name}-{start:02d}.log"
        settings.write_text(dump_config(config))
        job = Path(__file__).parents[3] / "jobs" / "run.py"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, str(job), str(settings)], stdout=output, stderr=output,
                env={**marked_environment(self.mark), ADDRESS_VARIABLE: self.address},
                start_new_session=True,
            )  # fmt: skip
        try:
            yield process, log
        finally:
            process.kill()
            process.wait()

    def _inject_into(
        self,
        process: "subprocess.Popen[bytes]",
        outcome: RunOutcome,
        waiting: list[str],
        random: np.random.Generator,
    ) -> int | None:
        """Inject the waiting faults while a run lasts; returns its exit status, None if it hangs."""
        began = time.monotonic()
        due = began + random.uniform(*GAP_SECONDS)
        last: Fault | None = None
        while (status := process.poll()) is None:
            now = time.monotonic()
            if now - began > STALLED_SECONDS:
                return None
            if waiting and now >= due:
                kind = str(random.choice(waiting))
                what = self._inject(kind, process, random)
                if what is not None:
                    waiting.remove(kind)
                    last = Fault(outcome.run, kind, what)
                    outcome.faults.append(last)
                    self.console.print(f"  {kind}: {escape(what)}", highlight=False)
                    due = time.monotonic() + random.uniform(*GAP_SECONDS)
            time.sleep(0.05)
        if status != 0 and last is not None:
            last.outcome = "ended"
        if self.cluster is not None:
            self.cluster.replace_lost()
        return status

    def _inject(
        self, kind: str, process: "subprocess.Popen[bytes]", random: np.random.Generator
    ) -> str | None:
        if kind == "driver":
            process.kill()
            ended = process.wait() != -signal.SIGKILL  # by itself, before the kill
            return None if ended else f"process {process.pid}"
        if kind == "store":
            return self.injector.fill_stores(3.0)
        what = self.injector.inject(kind, random)
        if kind == "node" and self.cluster is not None:
            time.sleep(2 * REPLY_SECONDS + random.uniform(0, 3))
            self.cluster.replace_lost()
        return what


def _last_line(log: Path) -> str:
    """The last line of a log."""
    return (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1].strip()


def _names_error(log: Path) -> bool:
    """Whether a failed start has logged an error."""
    return "Error" in log.read_text(errors="replace")


def run_chaos(
    config: RunConfig, plan: FaultPlan, tolerance: float, console: Console
) -> list[RunOutcome]:
    """Inject faults into runs of a config, and check each run.

    Args:
        config: of the runs; their results replace those of an earlier call in `<run_dir>/chaos/`.
        plan: the faults.
        tolerance: see `problems`.
        console: for progress and problems.

    Raises:
        ChaosError: the run fails without faults; or the plan has faults that hit whole nodes, and
            the cluster runs other jobs.
        ConfigError: `label.budget` is below 1.
    """
    if config.label.in_part:
        raise ConfigError(
            f"label.budget is {config.label.budget:g}: the choice of the rows to label then depends "
            "on students, which may differ in the last bit from those of the run without faults",
            "Append label.budget=1 to the command.",
        )
    outcomes = []
    with _harness(config, console) as harness:
        if harness.cluster is None:
            require_own_cluster(plan.kinds, other_jobs())
        forget_earlier(config)
        console.print("a run without faults, to compare with")
        undisturbed = harness.undisturbed()
        for number, kinds in enumerate(plan.of_each_run()):
            outcome = harness.run_with_faults(number, kinds, plan.seed)
            outcome.problems += problems(harness.of_run(f"{number:02d}"), undisturbed, tolerance)
            outcome.problems += _remaining(harness.injector.left, 60.0, "still running")
            outcomes.append(outcome)
            console.print(
                f"run {number}: {len(outcome.faults)} of {len(kinds)} faults, "
                f"{outcome.starts} starts, {duration(outcome.seconds)}, "
                f"{len(outcome.problems)} problems"
            )
            for line in outcome.problems:
                console.print(f"  {escape(line)}", style="bold red")
    if harness.cluster is not None:
        outcomes[-1].problems += _remaining(
            lambda: processes_with(harness.mark), 20.0, "outlived the cluster"
        )
    return outcomes


def require_own_cluster(kinds: Sequence[str], others: Sequence[str]) -> None:
    """Check that no fault hits another job.

    Args:
        kinds: of the faults.
        others: commands of the other jobs of the cluster.

    Raises:
        ChaosError: one would.
    """
    whole = [kind for kind in WHOLE_NODES if kind in kinds]
    if whole and others:
        raise ChaosError(
            f"{' and '.join(whole)} would hit the other jobs of this cluster too: "
            f"{', '.join(others[:3])}",
            "Leave them out by --kinds, or use a cluster of your own.",
        )


def forget_earlier(config: RunConfig) -> None:
    """Delete the runs of an earlier call: complete runs would leave no time for faults."""
    folder = Folder(f"{RunLayout(config.run_dir).root}/chaos")
    files = folder.files()
    for name in filter(_OURS.fullmatch, folder.names()):
        if name in files:
            folder.delete_file(name)
        else:
            Folder(f"{folder.uri}/{name}").delete()


def _local_folder(config: RunConfig) -> Path:
    """The folder for the configs and logs of the runs."""
    if "://" in config.run_dir:
        return Path(tempfile.mkdtemp(prefix="llkd-chaos-"))
    folder = Path(config.run_dir) / "chaos"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _harness(config: RunConfig, console: Console) -> Iterator[Harness]:
    """A harness on a cluster that is started, or joined, for the block."""
    address, mark = os.environ.get(ADDRESS_VARIABLE), uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        os.environ[MARK] = mark  # of a cluster on this machine too
        stack.callback(os.environ.pop, MARK)
        cluster = None if address else LocalCluster()
        if cluster is not None:
            stack.callback(cluster.shutdown)
            address = cluster.address
        stack.callback(ray.shutdown)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        yield Harness(
            config, Injector(mark), cluster, str(address), mark, _local_folder(config), console
        )


def _remaining(look: Callable[[], list[str]], patience: float, what: str) -> list[str]:
    """The processes that still run after so many seconds.

    Args:
        look: lists the running ones.
        patience: seconds to wait for their end.
        what: prefix of each line of the result.
    """
    deadline = time.monotonic() + patience
    while left := look():
        if time.monotonic() > deadline:
            return [f"{what}: {line}" for line in left]
        time.sleep(0.5)
    return []
