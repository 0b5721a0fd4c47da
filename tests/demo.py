"""The demo's real models, prepared once for the tests that need them."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def prepared() -> Path:
    """The demo folder; made from the installed packages if it is not there."""
    subprocess.run(
        [sys.executable, "jobs/prepare_demo.py"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return ROOT / "demo"
