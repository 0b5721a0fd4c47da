"""Execute the notebooks and keep their outputs.

    python notebooks/execute.py [NOTEBOOK ...]

Reads demo/ and runs/bbc, which `make demo` writes, and stores the outputs in the notebooks. Each notebook
runs in a fresh folder of links, so its outputs do not depend on earlier runs in this checkout.
"""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("jobs", "demo", "runs/bbc")
"""The parts of a checkout that the notebooks read."""
MAX_BYTES = 250_000
"""Size limit of a notebook with its outputs."""
COLORS = 128
"""Colours of a plot."""
NO_LIMIT = 10**9
"""Seconds, where nbclient requires a number. A kernel that dies ends every wait."""

_UNWANTED = {
    "a path of this machine": re.compile(r"(?<![\w./])/(work|tmp|root|home|Users|opt|usr)/[^\s'\"]*"),
    "log lines of a library": re.compile(
        r"Traceback \(|[a-z]Warning: |\b(WARNING|INFO)\b|\([\w:]{1,40} pid=|ray::|\x1b"
    ),
}  # fmt: skip


def main() -> None:
    """Execute the notebooks in the order given; exit with 1 if an output must not be committed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [ROOT / "notebooks" / f"{name}.ipynb" for name in ("tour", "hand_labels", "analysis")]
    parser.add_argument("notebooks", nargs="*", type=Path, default=names, metavar="NOTEBOOK")
    subprocess.run([sys.executable, "jobs/prepare_demo.py"], cwd=ROOT, check=True)
    status = 0
    for path in parser.parse_args().notebooks:
        print(path.name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(path, linked_checkout(Path(folder)))
        nbformat.write(notebook, path)
        for fault in faults(path):
            print(f"  {fault}", file=sys.stderr)
            status = 1
    sys.exit(status)


def linked_checkout(folder: Path) -> Path:
    """Make a folder look like a checkout after `make demo`; returns it."""
    for name in LINKED:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            link.symlink_to(ROOT / name)
    (folder / "notebooks").mkdir()
    return folder


def executed(path: Path, checkout: Path, **environment: str) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run from top to bottom.

    Nothing here depends on the speed of the machine: each wait ends with a message of the kernel or
    with the kernel's death, and outputs that arrive late are waited for (nbclient drops those that come
    four seconds after the reply).

    Args:
        path: the notebook; the file is not changed.
        checkout: see `linked_checkout`; notebooks that share one find each other's files.
        environment: variables that the first cell reads.

    Raises:
        CellExecutionError: a cell raised, or a command in it failed.
        DeadKernelError: the kernel died.
    """
    notebook = nbformat.read(path, as_version=4)
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": search_path, "IPYTHONDIR": str(checkout / ".ipython")}
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=None, startup_timeout=NO_LIMIT,
        iopub_timeout=NO_LIMIT, record_timing=False,
    )  # fmt: skip
    client.execute(cwd=str(checkout / "notebooks"), env={**variables, **environment})
    return _tidied(notebook)


def _tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop metadata of this machine, join the pieces of each stream, reduce the plots' colours."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            last = outputs[-1] if outputs else {}
            if "name" in output and last.get("name") == output.name:
                last["text"] += output.text
            else:
                outputs.append(output)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _fewer_colors(output.data["image/png"])
        if cell.cell_type == "code":
            cell.outputs = outputs
    return notebook


def _fewer_colors(picture: str) -> str:
    """A base64 PNG reduced to COLORS colours: a third of the bytes, and plots look the same."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(COLORS).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def faults(path: Path) -> list[str]:
    """The reasons not to commit a notebook; empty if there are none."""
    notebook = nbformat.read(path, as_version=4)
    found = [f"the output of {cell} holds {what}" for cell, what in _unwanted(notebook)]
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"{size:,} bytes exceed {MAX_BYTES:,}: draw fewer or smaller plots")
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append("the cells were not executed from top to bottom")
    return found


def _unwanted(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """(cell id, fault of its output)."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                yield cell.id, "an error"
            data = output.get("data", {})
            texts = [text for kind, text in data.items() if kind.startswith("text/")]
            for what, pattern in _UNWANTED.items():
                for text in [output.get("text", ""), *texts]:
                    if match := pattern.search(text):
                        yield cell.id, f"{what}: {match[0]!r}"


if __name__ == "__main__":
    main()
