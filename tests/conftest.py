"""Shared fixtures: a local Ray, a tiny student, a small corpus, a config over them, finished runs."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Waiting threads of torch sleep: on shared cores, a spinning thread would block the one that it
# waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Ray runs its workers at nice 15: any other busy process on the machine would starve the tests.
os.environ.setdefault("RAY_worker_niceness", "0")
import llkd.cluster.connection  # noqa: F401  sets what Ray reads when it is imported

# Ray's workers import the fakes by this name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH")])
)

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, Phase, settings

from llkd.config.load import parse_config
from llkd.config.run import RunConfig
from tests.fakes import TOPICS, make_texts
from tests.helpers import ROOT as ROOT
from tests.helpers import run

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
_PHASES = (Phase.explicit, Phase.generate, Phase.shrink)  # explaining takes minutes
settings.register_profile(
    "tests", derandomize=True, phases=_PHASES, max_examples=25, deadline=None, database=None,
    suppress_health_check=_SLOW,
)  # fmt: skip
settings.register_profile(
    "fuzz", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
settings.load_profile("tests")  # make fuzz takes the other one

SLOW_TIMEOUT = 3600
"""Time limit of a slow test in seconds; pyproject.toml sets that of the others. Both are safety nets."""

LONGEST_FIRST = (
    "tests/lab/chaos/test_chaos.py", "tests/test_jobs.py", "tests/test_submit.py",
    "tests/store/test_object_store.py", "tests/distill/test_stage.py", "tests/teacher/test_stage.py",
    "tests/test_notebooks.py", "tests/teacher/test_vllm.py", "tests/teacher/test_vllm_killed.py",
    "tests/teacher/test_openai.py", "tests/cluster/test_placement.py",
    "tests/cluster/test_telemetry.py", "tests/test_rounds.py", "tests/test_repair.py",
    "tests/results/test_export.py", "tests/results/test_predict.py", "tests/lab",
)  # fmt: skip
"""The slowest files, in the order in which they start, so that short ones fill both workers at the
end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, and give slow tests more time."""

    def rank(item: pytest.Item) -> int:
        found = [i for i, path in enumerate(LONGEST_FIRST) if item.nodeid.startswith(path)]
        return min(found, default=len(LONGEST_FIRST))

    items.sort(key=rank)
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT), append=False)


class SilentTracker:
    """A tracker that only records its calls, in this process."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        calls = self.calls

        class Method:
            @staticmethod
            def remote(*arguments: Any) -> Any:
                import ray

                calls.append((name, arguments))
                return ray.put(None) if ray.is_initialized() else None

        return Method()


@pytest.fixture
def tracker() -> SilentTracker:
    return SilentTracker()


_shared = {"started": False}
"""Whether this worker has a shared Ray."""


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of stages that this worker runs."""
    from llkd.cluster import connection

    _start_ray()
    _shared["started"] = True
    yield
    _shared["started"] = False
    connection.disconnect()


def _start_ray() -> None:
    import ray

    from llkd.cluster import connection

    os.environ.pop("RAY_ADDRESS", None)
    connection.use_own_token()
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
        object_store_memory=200_000_000,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Restart the shared Ray if an earlier test has left it unusable."""
    if "local_ray" not in getattr(item, "fixturenames", ()) or not _shared["started"]:
        return
    if (fault := _ray_fault()) is not None:
        from llkd.cluster import connection

        warnings.warn(f"The shared Ray is started again: {fault}", stacklevel=1)
        connection.disconnect()
        _start_ray()


def _ray_fault() -> str | None:
    """Why the shared Ray cannot be used; None if it can."""
    import ray
    from ray._private.worker import _global_node

    if "RAY_ADDRESS" in os.environ:
        return f"an earlier test left RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
    if not ray.is_initialized():
        return "an earlier test has disconnected"
    if _global_node is None:
        return "an earlier test has connected to another cluster"
    if dead := _global_node.dead_processes():
        return f"ended: {', '.join(str(kind) for kind, _ in dead)}"
    if not [node for node in ray.nodes() if node["Alive"]]:
        return "its node is dead"
    return None


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made_once(name, make)` makes a folder for the first test of any worker that needs it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the one that all workers share

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a test that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def tiny_student(made_once: Callable[..., Path]) -> str:
    """A random encoder of a few thousand weights with a word-level tokenizer."""
    return str(made_once("student", _make_student))


def _make_student(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for words in TOPICS.values() for word in words})
    words += ["the", "a", "of", "on", "with", "new", "old", "was", "is", "today", "n"]
    digits = [*"0123456789", *(f"##{d}" for d in "0123456789")]
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *digits])
    )
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def corpus_files(made_once: Callable[..., Path]) -> tuple[str, str]:
    """(corpus, test set) as Parquet, both with gold in the column `label`."""
    folder = made_once("data", _make_corpus)
    return str(folder / "corpus.parquet"), str(folder / "test.parquet")


def _make_corpus(folder: Path) -> None:
    for name, count, seed in (("corpus", 420, 1), ("test", 120, 2)):
        texts, gold = make_texts(count, seed)
        ids = [f"{name}-{i}" for i in range(count)]
        pq.write_table(
            pa.table({"text": texts, "label": gold, "id": ids}), folder / f"{name}.parquet"
        )


MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_student: str, corpus_files: tuple[str, str]) -> MakeConfig:
    """A config with a fake teacher and a tiny student; keyword sections are merged over it."""
    return config_maker(tmp_path, tiny_student, corpus_files)


def config_maker(folder: Path, student: str, corpus_files: tuple[str, str]) -> MakeConfig:
    """The fixture `make_config` for another folder."""

    def make(**sections: Any) -> RunConfig:
        raw: dict[str, Any] = {
            "run_dir": str(folder / "run"),
            "task": {"instruction": "Which topic?", "labels": dict.fromkeys(TOPICS)},
            "corpus": {"path": corpus_files[0], "rows_per_shard": 60},
            "test": {"path": corpus_files[1], "label_column": "label"},
            "teacher": {
                "engine": "tests.fakes:KeywordTeacher", "model": "keywords",
                "resources": {"CPU": 1},
            },
            "student": {
                "model": student, "epochs": 2, "batch_size": 16, "learning_rate": 2e-3,
                "max_length": 32, "workers": 1, "resources": {"CPU": 1}, "precision": "float32",
                "min_steps": 0,
            },
            "selection": {"policy": "llkd"},
        }  # fmt: skip
        for name, value in sections.items():
            raw[name] = (
                {**raw[name], **value} if isinstance(raw.get(name), dict) and value else value
            )
        return parse_config(raw)

    return make


@pytest.fixture
def in_process() -> Iterator[None]:
    """Actor pools, shard tasks and the training worker run in this process."""
    from tests.in_process import in_process

    with in_process():
        yield


@dataclass(frozen=True)
class MadeRun:
    """A run that is made once; tests change copies of it."""

    sections: dict[str, Any]
    """Its settings, as keywords of `make_config`."""
    make: MakeConfig
    folder: Path
    """Its run directory."""

    def config(self, **sections: Any) -> RunConfig:
        """Its config, with some settings added or changed."""
        merged = dict(self.sections)
        for name, value in sections.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = {**merged[name], **value} if both else value
        return self.make(**{"run_dir": str(self.folder), **merged})

    def copy(self, folder: Path) -> "MadeRun":
        """The same run in another directory; files keep the times that its checksums record."""
        shutil.copytree(self.folder, folder)
        return MadeRun(self.sections, self.make, folder)


LABELLED: dict[str, Any] = {
    "corpus": {"id_column": "id", "label_column": "label"},
    "teacher": {"engine_args": {"refuse": "n10"}},
}
"""Settings of the shared runs: the teacher refuses eleven rows of the corpus."""

FINISHED: dict[str, Any] = {
    **LABELLED,
    "student": {"validation_fraction": 0.3},
    "selection": {"class_floor": 0.2},
}


@pytest.fixture(scope="session")
def labelled_run(
    local_ray: None, made_once: Callable[..., Path], tiny_student: str,
    corpus_files: tuple[str, str],
) -> MadeRun:  # fmt: skip
    """A run with a labelled corpus and test set; read-only."""
    return _made_run(
        "labelled", LABELLED, ("ingest", "label"), made_once, tiny_student, corpus_files
    )


@pytest.fixture(scope="session")
def finished_run(
    local_ray: None, made_once: Callable[..., Path], tiny_student: str,
    corpus_files: tuple[str, str],
) -> MadeRun:  # fmt: skip
    """A finished run of two epochs, without a report; read-only."""
    stages = ("ingest", "label", "distill", "evaluate")
    return _made_run("finished", FINISHED, stages, made_once, tiny_student, corpus_files)


def _made_run(
    name: str, sections: dict[str, Any], stages: tuple[str, ...], made_once: Callable[..., Path],
    student: str, corpus_files: tuple[str, str],
) -> MadeRun:  # fmt: skip
    def make_run(folder: Path) -> None:
        with without_report(), in_process():
            for stage in stages:
                run(stage, config_maker(folder, student, corpus_files)(**sections))

    from tests.in_process import in_process

    folder = made_once(name, make_run)
    return MadeRun(sections, config_maker(folder, student, corpus_files), folder / "run")


@contextlib.contextmanager
def without_report() -> Iterator[None]:
    """Skip report.html for the duration of the block: it takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llkd.pipeline.make_report", lambda config, console: None)
        yield


@pytest.fixture
def no_report() -> Iterator[None]:
    """Skip report.html."""
    with without_report():
        yield
