"""The processes of a benchmark: those that it starts, and those of Ray that it samples."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llkd.errors import IncompleteError

MARK = "RESULT "
"""Prefix of a line with a result on the output of a started process."""


def results_of(
    module: str, *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Run a module in a process of its own; yields each result that it passes to `send`.

    Args:
        module: its full name.
        arguments: of the command line.
        stdin: its input.
        environment: variables, in addition to those of this process.

    Raises:
        IncompleteError: the process failed; with the end of its error output.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with process, process.stdin as given:
            given.write(stdin)
            given.close()
            for line in process.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
        if process.returncode:
            log.seek(0)
            raise IncompleteError(
                f"{module} {' '.join(arguments)} failed:\n{log.read()[-4000:]}",
                "Correct the cause and run the same command again.",
            )


def send(result: Any) -> None:
    """Pass a result to the process that started this one by `results_of`."""
    print(f"{MARK}{json.dumps(result)}", flush=True)


class Watch:
    """Samples this process and Ray's workers on this machine while the block runs."""

    def __init__(self, seconds: float, title: str, sample: Callable[[str, Any], None]) -> None:
        """
        Args:
            seconds: between two samples.
            title: the start of the title of the workers to sample.
            sample: called with `driver` or `worker`, and the psutil.Process.
        """
        self._seconds, self._title, self._sample = seconds, title, sample
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        driver = psutil.Process()
        while not self._stop.wait(self._seconds):
            self._sample("driver", driver)
            for child in driver.children(recursive=True):
                try:
                    if (child.cmdline() or [""])[0].startswith(self._title):
                        self._sample("worker", child)
                except psutil.Error:  # it has just ended
                    continue
