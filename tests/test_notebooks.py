"""The notebooks, executed with real models, and in their committed form."""

from pathlib import Path

import nbformat
import pyarrow.dataset as ds
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook, new_output

from notebooks.execute import MAX_BYTES, executed, faults, linked_checkout
from tests.conftest import ROOT
from tests.demo import prepared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]
"""The limit is a backstop against a hang: the tour starts Ray six times, within its first test."""

FOLDER = ROOT / "notebooks"
ROWS = 64
RUN = "runs/tour/run"
QUICK = {
    "engine: vllm": "engine: transformers", ", enforce_eager: true": "", "epochs: 4": "epochs: 2",
}  # fmt: skip
"""Two starts of vLLM would take most of the time; tests/teacher/test_vllm.py tests the real one."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared()
    return linked_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def tour(checkout: Path) -> Path:
    """The tour, executed on few rows."""
    return quickly(checkout, "tour", ROWS=str(ROWS))


def quickly(checkout: Path, name: str, **variables: str) -> Path:
    """A notebook, executed with quick settings."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (config,) = (cell for cell in notebook.cells if cell.id == "write-config")
    for slow, quick in QUICK.items():
        assert slow in config.source
        config.source = config.source.replace(slow, quick)
    path = saved(notebook, checkout / f"{name}.ipynb")
    return saved(executed(path, checkout, **variables), path)


def saved(notebook: nbformat.NotebookNode, path: Path) -> Path:
    nbformat.write(notebook, path)
    return path


def printed(path: Path, cell: str) -> str:
    """The text that a cell printed."""
    (found,) = (each for each in nbformat.read(path, as_version=4).cells if each.id == cell)
    return "".join(output.get("text", "") for output in found.outputs)


def test_the_tour_labels_distils_compares_and_predicts(tour: Path, checkout: Path) -> None:
    assert faults(tour) == []
    assert f"label: {ROWS + 40} rows" in printed(tour, "run-label")
    assert "Test set, 40 rows" in printed(tour, "run-distill")
    assert all(
        name in printed(tour, "run-compare") for name in ("llkd", "refined", "all", "random")
    )
    folder = checkout / RUN / "predictions/new"
    found = ds.dataset(folder, format="parquet", exclude_invalid_files=True).to_table()
    new = [f"article-{number:04d}" for number in range(900 - ROWS // 8, 900)]
    assert found["id"].to_pylist() == new


def test_a_few_labels_by_hand_say_how_right_the_student_is(checkout: Path) -> None:
    path = quickly(checkout, "hand_labels", ROWS="120", SAMPLE="40")
    assert faults(path) == []
    assert "'sports'" in printed(path, "run-typo")
    assert "of the corpus, by" in printed(path, "run-gold")
    assert "the teacher is wrong on" in printed(path, "show-review")


def test_the_analysis_reads_the_run_of_the_tour(tour: Path, checkout: Path) -> None:
    notebook = executed(FOLDER / "analysis.ipynb", checkout, RUN_DIR=RUN)
    analysis = saved(notebook, checkout / "analysis.ipynb")
    assert faults(analysis) == []
    assert printed(analysis, "read") == "64 labelled rows, 5 labels, 2 epochs, 40 test rows\n"
    assert "of the rows at least once" in printed(analysis, "cost")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_show_a_complete_run_and_no_local_paths(path: Path) -> None:
    assert faults(path) == []
    assert sum("image/png" in str(cell.get("outputs")) for cell in cells(path)) >= 1


def cells(path: Path) -> list[nbformat.NotebookNode]:
    return list(nbformat.read(path, as_version=4).cells)


def test_a_command_that_fails_fails_its_cell(checkout: Path) -> None:
    source = "%%bash\npython jobs/run.py runs/nowhere.yaml"
    path = saved(new_notebook(cells=[new_code_cell(source)]), checkout / "failing.ipynb")
    with pytest.raises(CellExecutionError, match="nowhere"):
        executed(path, checkout)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (new_output("error", ename="ValueError", evalue="", traceback=[]), "holds an error"),
        (new_output("stream", name="stderr", text="anything"), "holds an error"),
        (new_output("stream", text="see /root/a"), "a path of this machine: '/root/a'"),
        (new_output("stream", text="at /tmp/x/y.log."), "a path of this machine: '/tmp/x/y.log.'"),
        (
            new_output("execute_result", data={"text/html": "<b>/home/me</b>"}),
            "a path of this machine",
        ),
        (new_output("stream", text="2026 WARNING a.py:1"), "log lines of a library: 'WARNING'"),
        (new_output("stream", text="a.py:1: UserWarning: b"), "log lines of a library"),
        (new_output("stream", text="x" * MAX_BYTES), "bytes exceed 250,000"),
    ],
)
def test_outputs_that_must_not_be_committed(
    tmp_path: Path, output: nbformat.NotebookNode, words: str
) -> None:
    cell = new_code_cell("1", execution_count=1, outputs=[output])
    (fault,) = faults(saved(new_notebook(cells=[cell]), tmp_path / "a.ipynb"))
    assert words in fault


def test_outputs_that_may_be_committed(tmp_path: Path) -> None:
    output = new_output("stream", text="Warning   runs/tour/run/logs and/or a/tmp/b")
    picture = new_output("display_data", data={"image/png": "iVBO+/tmp/a+/root/b"})
    cell = new_code_cell("1", execution_count=1, outputs=[output, picture])
    assert faults(saved(new_notebook(cells=[cell]), tmp_path / "a.ipynb")) == []


def test_cells_executed_out_of_order(tmp_path: Path) -> None:
    two = [new_code_cell("1", execution_count=count) for count in (2, 1)]
    assert faults(saved(new_notebook(cells=two), tmp_path / "a.ipynb")) == [
        "the cells were not executed from top to bottom"
    ]
