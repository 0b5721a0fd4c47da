"""What all jobs share: arguments, the console, the log of the libraries, the exit status."""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from llkd.cluster.telemetry import SHARD_LOG
from llkd.config.load import absolute_paths, load_config
from llkd.config.run import RunConfig
from llkd.errors import ConfigError, LLKDError, StorageError
from llkd.store.folder import Folder, portable_path
from llkd.store.schema import RunLayout

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit statuses, as shells have them."""


Stage = Callable[[RunConfig, Console], Any]


def run_job(name: str, description: str | None, measure: Stage | None = None) -> None:
    """Parse the command line, connect to Ray, run the stage of that name, and exit.

    Args:
        name: of the job, and of its stage in `llkd.pipeline.STAGES`.
        description: for `--help`.
        measure: runs in place of a stage and returns figures; adds the option `--json FILE`, which
            takes them.

    Exit status: 0 when everything is there; 1 when the job failed; 2 for a wrong command line
    or config; 130 when interrupted, 143 when told to end, as by `ray job stop`.
    """
    parser = job_parser(name, description)
    if measure is not None:
        parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    arguments = parser.parse_args()
    with errors_told():
        config = config_of(arguments.config, arguments.overrides)

    def work(console: Console) -> None:
        # Only now: importing Ray and connecting to it talk too.
        from llkd.pipeline import run_stage
        from llkd.preflight import require_inputs

        require_inputs(name, config)
        with in_run_dir(config, name != "plan"), connected():
            found = (measure or partial(run_stage, name))(config, console)
        if measure is not None and arguments.json is not None:
            write_figures(arguments.json, found)

    sys.exit(do_logged(name, config, work))


def config_of(path: str, overrides: Sequence[str]) -> RunConfig:
    """The config of a file with settings that replace its own, as a job works with it.

    Raises:
        ConfigError: it is wrong.
    """
    return absolute_paths(load_config(path, overrides))


MOST_OF_ERROR = 600
"""Characters of what is wrong that are shown: a library's words may be many. The log has all."""


def two_lines(error: Exception, log: str | None) -> tuple[str, str]:
    """What a person is told of an error: what is wrong, and what to do.

    Args:
        error: any.
        log: the file that holds its traceback; None where there is none.
    """
    where = "" if log is None else f" Log: {portable_path(log)}"
    if isinstance(error, LLKDError):
        what, todo = one_line(error.what), error.remedy
    else:
        what = " ".join(str(error).split())
        todo = "This is a bug, in LLKD or in a library that it uses: report it with its traceback."
    if len(what) > MOST_OF_ERROR:
        what = f"{what[:MOST_OF_ERROR]}…"
    return f"{type(error).__name__}: {what}", f"  {todo}{where}"


def one_line(text: str) -> str:
    """The lines of a text in one: items of a list are separated by semicolons."""
    joined = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        between = " " if not joined or joined.endswith((":", ".", ";", ",")) else "; "
        joined = f"{joined}{between}{line.removeprefix('- ')}" if joined else line
    return joined


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """End the process with two lines for any error: status 2 for a wrong config, else 1. For what
    comes before there is a run directory, or does without; see `do_logged` for the rest."""
    try:
        yield
    except LLKDError as error:
        print("\n".join(two_lines(error, None)), file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Exception as error:
        file, log = tempfile.mkstemp(prefix="llkd-", suffix=".log")
        with os.fdopen(file, "w", encoding="utf-8") as written:
            traceback.print_exc(file=written)
        print("\n".join(two_lines(error, log)), file=sys.stderr)
        sys.exit(1)


def do_logged(name: str, config: RunConfig, work: Callable[[Console], None]) -> int:
    """Do some work, with all that the libraries say in a log; returns the exit status, see
    `run_job`."""
    # What is held is given back. Ray's own handler, once it is connected, does the same.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        return _run(name, config, work)
    except OSError as error:  # before there is a log
        refused = StorageError(f"Cannot write into run_dir {config.run_dir}: {error}")
        print("\n".join(two_lines(refused, None)), file=sys.stderr)
        return 1


def write_figures(path: Path, figures: Any) -> None:
    """Put a JSON file where the user wants it.

    Raises:
        StorageError: it cannot be written.
    """
    Folder(str(path.absolute().parent)).write_json(path.name, figures)


@contextlib.contextmanager
def in_run_dir(config: RunConfig, writes: bool = True) -> Iterator[None]:
    """The run directory, for this job alone where it writes there. Held before Ray starts, so that
    a second job is told at once.

    Raises:
        BusyError: another process holds it.
    """
    from llkd.store.lock import held

    with held(RunLayout(config.run_dir).root) if writes else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Ray, for the while."""
    from llkd.cluster import connection

    connection.connect()
    try:
        yield
    finally:
        connection.disconnect()


EPILOG = """Settings and their defaults: docs/settings.md. Exit status: 0 all is done; 1 failed; 2 wrong command
line or config; 130 interrupted; 143 told to end. Errors take two lines: what is wrong, what to do."""


def plain_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of no arguments yet."""
    return argparse.ArgumentParser(
        prog=f"jobs/{name}.py",
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def job_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of a config and of settings that replace its own."""
    parser = plain_parser(name, description)
    parser.add_argument("config", help="a YAML config, such as jobs/configs/bbc.yaml, or its URI")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="dotted.key=value",
        help="settings that replace the file's",
    )
    return parser


def _run(name: str, config: RunConfig, work: Callable[[Console], None]) -> int:
    layout = RunLayout(config.run_dir)
    with _captured_output(layout, name) as (console, log):
        try:
            work(console)
            return 0
        except (KeyboardInterrupt, SystemExit) as stop:
            console.print("Interrupted. The same command resumes from here.")
            return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED
        except Exception as error:
            traceback.print_exc()
            what, todo = two_lines(error, log)
            kind, _, rest = what.partition(":")
            console.print(f"[bold red]{kind}[/]:{escape(rest)}")
            console.print(escape(todo))
            return 2 if isinstance(error, ConfigError) else 1


@contextlib.contextmanager
def _captured_output(layout: RunLayout, name: str) -> Iterator[tuple[Console, str]]:
    """Send file descriptors 1 and 2 to a log file, and yield a console on the real output.

    Ray, vLLM and their children write to the descriptors, so nothing short of this keeps their
    chatter off the screen. On an object store the log is uploaded at the end.
    """
    file_name = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    remote = "://" in layout.logs
    folder = Path(tempfile.mkdtemp(prefix="llkd-")) if remote else Path(layout.logs)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    sys.stdout.flush()
    sys.stderr.flush()
    screen: TextIO = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    saved = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    shard_log = SHARD_LOG.set(str(path.absolute().with_suffix(".jsonl")))
    width = None if screen.isatty() else 120
    try:
        yield Console(file=screen, highlight=False, soft_wrap=True, width=width), str(path)
    finally:
        SHARD_LOG.reset(shard_log)
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        screen.close()
        if remote:
            with contextlib.suppress(LLKDError, OSError):  # it is still where it was written
                for found in folder.iterdir():
                    Folder(layout.logs).write_bytes(found.name, found.read_bytes())
