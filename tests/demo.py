"""The demo's real models, prepared once for the tests that need them."""

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from tests.helpers import ROOT


@functools.cache
def prepared() -> Path:
    """The demo folder, made from the installed packages if missing. A lock keeps two test workers from
    making it at the same time.
    """
    with FileLock(Path(tempfile.gettempdir(), "llkd-demo.lock")):
        subprocess.run(
            [sys.executable, "jobs/prepare_demo.py"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return ROOT / "demo"
