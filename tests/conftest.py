"""Shared fixtures: a local Ray, a tiny student, a small corpus, a config over them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads of torch that wait for each other sleep: on cores that two tests share, those that spin
# keep off the very thread that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import llkd.cluster.connection  # noqa: F401  sets what Ray reads when it is imported

# Ray's workers import the fakes by this name.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH")])
)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings

from llkd.config.load import parse_config
from llkd.config.run import RunConfig
from tests.fakes import TOPICS, make_texts

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

ROOT = Path(__file__).resolve().parents[1]


class SilentTracker:
    """A tracker whose every call is recorded in this process and goes nowhere."""

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


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests of stages."""
    import ray

    from llkd.cluster import connection

    os.environ.pop("RAY_ADDRESS", None)
    connection.use_own_token()
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
        object_store_memory=200_000_000,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    connection.disconnect()


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random encoder of a few thousand weights with a word-level tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("student")
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
    return str(folder)


@pytest.fixture(scope="session")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(corpus, test set) as Parquet; the corpus has gold in a column of its own."""
    folder = tmp_path_factory.mktemp("data")
    for name, count, seed in (("corpus", 420, 1), ("test", 120, 2)):
        texts, gold = make_texts(count, seed)
        ids = [f"{name}-{i}" for i in range(count)]
        pq.write_table(
            pa.table({"text": texts, "label": gold, "id": ids}), folder / f"{name}.parquet"
        )
    return str(folder / "corpus.parquet"), str(folder / "test.parquet")


MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, tiny_student: str, corpus_files: tuple[str, str]) -> MakeConfig:
    """A config with a fake teacher and a tiny student; keyword sections are merged over it."""
    return config_maker(tmp_path, tiny_student, corpus_files)


def config_maker(folder: Path, student: str, corpus_files: tuple[str, str]) -> MakeConfig:
    """What the fixture `make_config` gives, for a folder of one's own."""

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
            },
            "selection": {"policy": "llkd"},
        }  # fmt: skip
        for name, value in sections.items():
            raw[name] = (
                {**raw[name], **value} if isinstance(raw.get(name), dict) and value else value
            )
        return parse_config(raw)

    return make
