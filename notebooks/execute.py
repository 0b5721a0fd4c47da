"""Run the notebooks from top to bottom and keep what they show.

    python notebooks/execute.py [NOTEBOOK ...]

Reads demo/ and runs/bbc, which `make demo` leaves, and writes the outputs into the notebooks. They
run in a folder of links, from nothing, so that what they show is the same wherever it is done.
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
"""What the notebooks read of a checkout."""
MOST_BYTES = 250_000
"""Of a notebook with its outputs."""
COLORS = 128
"""Of a plot."""
SECONDS = 1800
"""That a cell, or the start of Python, may take."""

_UNWANTED = {
    "a path of this machine": re.compile(r"(?<![\w./])/(work|tmp|root|home|Users|opt|usr)/[^\s'\"]*"),
    "what a library logged": re.compile(
        r"Traceback \(|[a-z]Warning: |\b(WARNING|INFO)\b|\([\w:]{1,40} pid=|ray::|\x1b"
    ),
}  # fmt: skip


def main() -> None:
    """Run them in the order given; exit status 1 if what one shows is not to be kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [ROOT / "notebooks" / f"{name}.ipynb" for name in ("tour", "analysis")]
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
    """Make a folder look like a checkout in which nothing was done but `make demo`; returns it."""
    for name in LINKED:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            link.symlink_to(ROOT / name)
    (folder / "notebooks").mkdir()
    return folder


def executed(path: Path, checkout: Path, **environment: str) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run from top to bottom.

    Args:
        path: the notebook, which is left as it is.
        checkout: see `linked_checkout`; the notebook finds there what earlier ones made.
        environment: variables that its first cell reads.

    Raises:
        CellExecutionError: a cell raised, or a command in it failed.
    """
    notebook = nbformat.read(path, as_version=4)
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": search_path, "IPYTHONDIR": str(checkout / ".ipython")}
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=SECONDS, startup_timeout=SECONDS,
        record_timing=False,
    )  # fmt: skip
    client.execute(cwd=str(checkout / "notebooks"), env={**variables, **environment})
    return _tidied(notebook)


def _tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without versions of this machine; what a cell printed in one piece, not as it arrived."""
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
    """A PNG in base64 as one of COLORS colours: a third of the bytes, and plots look the same."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(COLORS).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def faults(path: Path) -> list[str]:
    """What keeps a notebook from being committed: empty for one that may be."""
    notebook = nbformat.read(path, as_version=4)
    found = [f"the output of {cell} holds {what}" for cell, what in _unwanted(notebook)]
    if (size := path.stat().st_size) > MOST_BYTES:
        found.append(f"{size:,} bytes are more than {MOST_BYTES:,}: draw fewer or smaller plots")
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        found.append("the cells were not run from top to bottom")
    return found


def _unwanted(notebook: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    """(the id of a cell, what is wrong with its output)."""
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
