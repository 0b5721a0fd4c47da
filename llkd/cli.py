"""The command line that all jobs share: arguments, console, library log and exit status."""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape

from llkd.cluster.telemetry import SHARD_LOG
from llkd.config.load import load_config
from llkd.config.run import RunConfig
from llkd.errors import ConfigError, LLKDError, StorageError
from llkd.store.folder import Folder, portable_path
from llkd.store.schema import RunLayout

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit statuses, following shell convention."""


Stage = Callable[[RunConfig, Console], Any]


def run_job(name: str, description: str | None, measure: Stage | None = None) -> None:
    """Parse the command line, connect to Ray, run the stage of that name, and exit.

    Args:
        name: name of the job and of its stage in `llkd.pipeline.STAGES`.
        description: text for `--help`.
        measure: runs instead of a stage and returns figures; adds the option `--json FILE`, which
            writes them to a file.

    Exit status: 0 if the job is complete; 1 if it failed; 2 for an invalid command line or config;
    130 if interrupted; 143 if terminated, for example by `ray job stop`.
    """
    parser = job_parser(name, description)
    if measure is not None:
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    arguments = parser.parse_intermixed_args()
    with reported_errors():
        config = load_config(arguments.config, arguments.overrides)

    def work(console: Console) -> None:
        # Imported late, once output is captured: Ray prints when it is imported.
        from llkd.pipeline import run_stage
        from llkd.preflight import require_inputs

        require_inputs(name, config)
        with in_run_dir(config, name != "plan"), connected():
            found = (measure or partial(run_stage, name))(config, console)
        if measure is not None and arguments.json is not None:
            write_figures(arguments.json, found)

    sys.exit(do_logged(name, config, work))


def run_row_job(name: str, description: str | None, rows: int, *flags: tuple[str, str]) -> None:
    """Like `run_job`, for a function `run_<name>` of llkd.pipeline that also takes a number of rows.

    Args:
        name: name of the job.
        description: text for `--help`.
        rows: default of the option `--rows`.
        flags: (name, help) of further options without a value.
    """
    parser = job_parser(name, description)
    parser.add_argument("--rows", type=int, default=rows, help=f"how many rows ({rows})")
    for flag, text in flags:
        parser.add_argument(f"--{flag}", action="store_true", help=text)
    arguments = parser.parse_intermixed_args()
    if arguments.rows < 1:
        parser.error(f"--rows must be at least 1, not {arguments.rows}")
    with reported_errors():
        config = load_config(arguments.config, arguments.overrides)

    def work(console: Console) -> None:
        from llkd import pipeline
        from llkd.preflight import require_inputs

        require_inputs(name, config)
        given = {flag: getattr(arguments, flag) for flag, _ in flags}
        with in_run_dir(config), connected():
            getattr(pipeline, f"run_{name}")(config, console, arguments.rows, **given)

    sys.exit(do_logged(name, config, work))


MAX_ERROR_LENGTH = 600
"""Maximum length of an error on the console, since a library's message may be long. The log holds the
full text."""


def two_lines(error: Exception, log: str | None) -> tuple[str, str]:
    """An error as two console lines: what is wrong, and what to do.

    Args:
        error: any exception.
        log: the file with its traceback, if any.
    """
    where = "" if log is None else f" Log: {portable_path(log)}"
    if isinstance(error, LLKDError):
        what, todo = one_line(error.what), error.remedy
    else:
        what = " ".join(str(error).split())
        todo = "This is a bug in LLKD or in a library: report it with its traceback."
    if len(what) > MAX_ERROR_LENGTH:
        what = f"{what[:MAX_ERROR_LENGTH]}…"
    return f"{type(error).__name__}: {what}", f"  {todo}{where}"


def one_line(text: str) -> str:
    """Join the lines of a text into one; list items are separated by semicolons."""
    joined = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        between = " " if not joined or joined.endswith((":", ".", ";", ",")) else "; "
        joined = f"{joined}{between}{line.removeprefix('- ')}" if joined else line
    return joined


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Exit with a two-line message on any error: status 2 for an invalid config, otherwise 1.

    For code that runs before or without a run directory; `do_logged` handles errors in one.
    """
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
    """Run `work` with library output redirected to a log; returns the exit status of `run_job`."""
    # Exit normally, so that locks are released. Ray's handler, once connected, does the same.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        return _run(name, config, work)
    except OSError as error:  # the log cannot be created
        refused = StorageError(f"Cannot write to run_dir {config.run_dir}: {error}")
        print("\n".join(two_lines(refused, None)), file=sys.stderr)
        return 1


def write_figures(path: Path, figures: Any) -> None:
    """Write figures to a JSON file.

    Raises:
        StorageError: the file cannot be written.
    """
    Folder(str(path.absolute().parent)).write_json(path.name, figures)


@contextlib.contextmanager
def in_run_dir(config: RunConfig, writes: bool = True) -> Iterator[None]:
    """Lock the run directory if the job writes to it. Acquired before Ray starts, so that a second
    job fails at once.

    Raises:
        BusyError: another process holds the lock.
    """
    from llkd.store.lock import held

    with held(RunLayout(config.run_dir).root) if writes else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray for the duration of the block."""
    from llkd.cluster import connection

    connection.connect()
    try:
        yield
    finally:
        connection.disconnect()


EPILOG = """Settings and their defaults: docs/settings.md. Exit status: 0 complete; 1 failed; 2 invalid command
line or config; 130 interrupted; 143 terminated. Errors are two lines: what is wrong, what to do."""


def plain_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser without arguments."""
    return argparse.ArgumentParser(
        prog=f"jobs/{name}.py",
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def job_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for a config and overrides of its settings."""
    parser = plain_parser(name, description)
    parser.add_argument("config", help="a YAML config, such as jobs/configs/bbc.yaml, or its URI")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="dotted.key=value",
        help="settings that override those in the file",
    )
    return parser


def _run(name: str, config: RunConfig, work: Callable[[Console], None]) -> int:
    layout = RunLayout(config.run_dir)
    with _captured_output(layout, name) as (console, log):
        try:
            work(console)
            return 0
        except (KeyboardInterrupt, SystemExit) as stop:
            console.print("Interrupted. Run the same command again to resume.")
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
    """Redirect file descriptors 1 and 2 to a log file, and yield a console on the real output.

    Ray, vLLM and their child processes write to the descriptors directly, so replacing sys.stdout
    would not keep their output off the console. For an object store the log is uploaded at the end.
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
            with contextlib.suppress(LLKDError, OSError):  # the local copy remains
                for found in folder.iterdir():
                    Folder(layout.logs).write_bytes(found.name, found.read_bytes())
