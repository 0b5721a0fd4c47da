"""Starts runs, kills what they consist of, starts them again, and looks at what they left.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import ray
from rich.console import Console
from rich.markup import escape

from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.cluster.progress import duration
from llkd.config.load import dump_config
from llkd.config.run import RunConfig
from llkd.errors import ChaosError, ConfigError
from llkd.lab.chaos.cluster import LocalCluster
from llkd.lab.chaos.outcome import Ordeal, Strike
from llkd.lab.chaos.verify import problems
from llkd.lab.chaos.warden import (
    ANSWER_SECONDS,
    MARK,
    WHOLE_NODES,
    Wardens,
    marked_environment,
    other_jobs,
    processes_with,
)
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout

GAP_SECONDS = (1.0, 8.0)
"""Between two disturbances of a run, drawn evenly."""

STALLED_SECONDS = 600.0
"""A start of a run that takes longer hangs."""

MOST_STARTS = 40
"""Of one run."""

UNDISTURBED = "undisturbed"
"""The run that others are compared with."""

_OURS = re.compile(rf"(\d{{2,}}|{UNDISTURBED})((-\d{{2,}})?\.(log|yaml))?")
"""What a bench makes in `<run_dir>/chaos`: runs, their configs, and what each start said."""


@dataclass(frozen=True)
class Disturbances:
    """What is done to runs."""

    kills: int
    """Over all runs."""
    runs: int
    """How many share them."""
    kinds: Sequence[str]
    """See KINDS."""
    seed: int
    """Of kinds, times and victims."""

    def of_each_run(self) -> list[list[str]]:
        """The kinds for each run: all kinds equally often over the runs, to one."""
        random = np.random.default_rng(self.seed)
        dealt: list[str] = []
        while len(dealt) < self.kills:
            dealt += [str(kind) for kind in random.permutation(list(self.kinds))]
        return [dealt[: self.kills][number :: self.runs] for number in range(self.runs)]


@dataclass(frozen=True)
class Bench:
    """What disturbs, and where."""

    config: RunConfig
    wardens: Wardens
    cluster: LocalCluster | None
    """None for one that is not ours: its autoscaler replaces what is lost."""
    address: str
    mark: str
    """See `marked_environment`."""
    folder: Path
    """On this machine: the runs' configs and what they say."""
    console: Console

    def of_run(self, name: str) -> RunConfig:
        """The config of one run of the bench."""
        run_dir = f"{RunLayout(self.config.run_dir).root}/chaos/{name}"
        return self.config.model_copy(update={"run_dir": run_dir})

    def undisturbed(self) -> RunConfig:
        """A finished run that nobody disturbs.

        Raises:
            ChaosError: it fails, or hangs.
        """
        config = self.of_run(UNDISTURBED)
        with self._started(config, 1) as (process, log):
            try:
                status = process.wait(timeout=STALLED_SECONDS)
            except subprocess.TimeoutExpired:
                raise ChaosError(
                    f"The run does not end within {STALLED_SECONDS:.0f} s even when it is "
                    "left in peace",
                    f"Take a smaller corpus, or see {log}.",
                ) from None
        if status:
            raise ChaosError(
                f"The run fails even when it is left in peace, with status {status}",
                f"See {log}.",
            )
        return config

    def ordeal(self, number: int, kinds: Sequence[str], seed: int) -> Ordeal:
        """One run, disturbed in each of these ways once, in any order, while it lasts.

        Args:
            number: of the run.
            kinds: what to do to it.
            seed: of the times and the victims.
        """
        random = np.random.default_rng([seed, number])
        config, found, waiting = self.of_run(f"{number:02d}"), Ordeal(number), list(kinds)
        began = time.monotonic()
        while not found.statuses or found.statuses[-1] != 0:
            if found.starts == MOST_STARTS:
                found.problems.append(f"does not end after {MOST_STARTS} starts")
                break
            found.starts += 1
            with self._started(config, found.starts) as (process, log):
                status = self._disturb(process, found, waiting, random)
            if status is None:
                found.problems.append(f"hung for {STALLED_SECONDS:.0f} s; see {log}")
                break
            found.statuses.append(status)
            if status not in (0, -9) and not _told(log):
                found.problems.append(f"ended with status {status} and no word of why; see {log}")
        found.seconds, found.unstruck = time.monotonic() - began, waiting
        return found

    @contextlib.contextmanager
    def _started(
        self, config: RunConfig, start: int
    ) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """A start of a run, and what it says; killed if it still runs in the end."""
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

    def _disturb(
        self,
        process: "subprocess.Popen[bytes]",
        found: Ordeal,
        waiting: list[str],
        random: np.random.Generator,
    ) -> int | None:
        """Strike while a start of a run lasts; returns its exit status, None if it hangs."""
        began = time.monotonic()
        due = began + random.uniform(*GAP_SECONDS)
        last: Strike | None = None
        while (status := process.poll()) is None:
            now = time.monotonic()
            if now - began > STALLED_SECONDS:
                return None
            if waiting and now >= due:
                kind = str(random.choice(waiting))
                what = self._strike(kind, process, random)
                if what is not None:
                    waiting.remove(kind)
                    last = Strike(found.run, kind, what)
                    found.strikes.append(last)
                    self.console.print(f"  {kind}: {escape(what)}", highlight=False)
                    due = time.monotonic() + random.uniform(*GAP_SECONDS)
            time.sleep(0.05)
        if status != 0 and last is not None:
            last.outcome = "ended"
        if self.cluster is not None:
            self.cluster.replace_lost()
        return status

    def _strike(
        self, kind: str, process: "subprocess.Popen[bytes]", random: np.random.Generator
    ) -> str | None:
        if kind == "driver":
            process.kill()
            ended = process.wait() != -signal.SIGKILL  # by itself, before it was struck
            return None if ended else f"process {process.pid}"
        if kind == "store":
            return self.wardens.fill_stores(3.0)
        what = self.wardens.strike(kind, random)
        if kind == "node" and self.cluster is not None:
            time.sleep(2 * ANSWER_SECONDS + random.uniform(0, 3))
            self.cluster.replace_lost()
        return what


def _told(log: Path) -> bool:
    """Whether a failed start has said what failed."""
    return "Error" in log.read_text(errors="replace")


def run_chaos(
    config: RunConfig, wanted: Disturbances, tolerance: float, console: Console
) -> list[Ordeal]:
    """Disturb runs of a config, and look at each.

    Args:
        config: what to run; its results go to `<run_dir>/chaos/`, over those of an earlier call.
        wanted: what is done to them.
        tolerance: see `problems`.
        console: where it is told.

    Raises:
        ChaosError: the run fails without being disturbed; or whole nodes of a cluster are to be
            struck that runs other jobs.
        ConfigError: `label.budget` is below 1.
    """
    if config.label.in_part:
        raise ConfigError(
            f"label.budget is {config.label.budget:g}: which rows are labelled then "
            "depends on students, which a run and its undisturbed twin need not share to "
            "the last bit.",
            "Append label.budget=1 to the command.",
        )
    found = []
    with _bench(config, console) as bench:
        if bench.cluster is None:
            require_own_cluster(wanted.kinds, other_jobs())
        forget_earlier(config)
        console.print("an undisturbed run, to compare with")
        undisturbed = bench.undisturbed()
        for number, kinds in enumerate(wanted.of_each_run()):
            ordeal = bench.ordeal(number, kinds, wanted.seed)
            ordeal.problems += problems(bench.of_run(f"{number:02d}"), undisturbed, tolerance)
            ordeal.problems += _left_running(bench.wardens)
            found.append(ordeal)
            console.print(
                f"run {number}: {len(ordeal.strikes)} of {len(kinds)} disturbances, "
                f"{ordeal.starts} starts, {duration(ordeal.seconds)}, "
                f"{len(ordeal.problems)} problems"
            )
            for line in ordeal.problems:
                console.print(f"  {escape(line)}", style="bold red")
    if bench.cluster is not None:
        found[-1].problems += [f"outlived the cluster: {line}" for line in left_over(bench.mark)]
    return found


def require_own_cluster(kinds: Sequence[str], others: Sequence[str]) -> None:
    """See that nobody else's work is struck.

    Args:
        kinds: of the disturbances.
        others: the other jobs of the cluster.

    Raises:
        ChaosError: it would be.
    """
    whole = [kind for kind in WHOLE_NODES if kind in kinds]
    if whole and others:
        raise ChaosError(
            f"{' and '.join(whole)} would strike the other jobs of this cluster too, "
            f"which runs {', '.join(others[:3])}.",
            "Leave them out by --kinds, or use a cluster of your own.",
        )


def forget_earlier(config: RunConfig) -> None:
    """Delete what an earlier call made: runs that are complete would not be disturbed."""
    folder = Folder(f"{RunLayout(config.run_dir).root}/chaos")
    files = folder.files()
    for name in filter(_OURS.fullmatch, folder.names()):
        if name in files:
            folder.delete_file(name)
        else:
            Folder(f"{folder.uri}/{name}").delete()


def _local_folder(config: RunConfig) -> Path:
    """Where the runs' configs and words go."""
    if "://" in config.run_dir:
        return Path(tempfile.mkdtemp(prefix="llkd-chaos-"))
    folder = Path(config.run_dir) / "chaos"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _bench(config: RunConfig, console: Console) -> Iterator[Bench]:
    """A cluster with its wardens, for the while."""
    address, mark = os.environ.get(ADDRESS_VARIABLE), uuid.uuid4().hex
    os.environ[MARK] = mark  # of a cluster on this machine too
    cluster = None if address else LocalCluster()
    if cluster is not None:
        address = cluster.address
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        yield Bench(
            config, Wardens(mark), cluster, str(address), mark, _local_folder(config), console
        )
    finally:
        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()
        del os.environ[MARK]


def _left_running(wardens: Wardens, patience: float = 60.0) -> list[str]:
    """Processes of a finished run that do not go away."""
    deadline = time.monotonic() + patience
    while left := wardens.left():
        if time.monotonic() > deadline:
            return [f"still running: {line}" for line in left]
        time.sleep(0.5)
    return []


def left_over(mark: str, patience: float = 20.0) -> list[str]:
    """Processes of a test that outlive its cluster."""
    deadline = time.monotonic() + patience
    while left := processes_with(mark):
        if time.monotonic() > deadline:
            return [" ".join(psutil.Process(pid).cmdline())[:120] for pid in left]
        time.sleep(0.5)
    return []
