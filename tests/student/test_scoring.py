"""The scorer, checked against one text at a time."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch

from llkd.config.student import StudentConfig
from llkd.errors import StudentError
from llkd.student.model import head_of, load_student
from llkd.student.probe import FrozenStudent
from llkd.student.scoring import Scorer, scoring_copy
from tests.fakes import make_texts
from tests.helpers import student_of

LABELS = ["sport", "tech", "trade"]


def loaded(model: str) -> tuple[Any, Any]:
    """(tokenizer, student), the same each time."""
    torch.manual_seed(1)
    return load_student(StudentConfig(model=model), LABELS)


@pytest.fixture(scope="module")
def scorer(tiny_student: str) -> Scorer:
    return Scorer(*loaded(tiny_student), max_length=32, tokens_per_batch=64)


def test_order_and_values_are_those_of_single_texts(scorer: Scorer) -> None:
    texts = [*make_texts(50, 3)[0], "team", "the " * 200, "team"]
    done: list[int] = []
    found = scorer.probabilities(texts, done.append)
    assert found.shape == (53, 3)
    assert found.sum(axis=1) == pytest.approx(np.ones(53), abs=1e-5)
    single = np.concatenate([scorer.probabilities([text]) for text in texts])
    assert found == pytest.approx(single, abs=1e-5)
    assert done[-1] == 53


def test_no_texts(scorer: Scorer) -> None:
    assert scorer.probabilities([]).shape == (0, 3)


def test_windows_come_back_in_their_order_with_their_keys(scorer: Scorer) -> None:
    texts = make_texts(30, 4)[0]
    windows = [("a", texts[:7]), ("empty", []), ("b", texts[7:]), ("none", [])]
    found = dict(scorer.stream(windows))
    assert list(found) == ["a", "empty", "b", "none"]
    assert found["empty"].shape == found["none"].shape == (0, 3)
    whole = scorer.probabilities(texts)
    assert np.concatenate([found["a"], found["b"]]) == pytest.approx(whole, abs=1e-5)


def test_many_windows_are_one_result(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(30, 4)[0]
    whole = scorer.probabilities(texts)
    monkeypatch.setattr("llkd.student.scoring.WINDOW_ROWS", 8)
    assert scorer.probabilities(texts) == pytest.approx(whole, abs=1e-5)


def test_what_the_windows_raise_is_raised(scorer: Scorer) -> None:
    def windows() -> Any:
        yield "a", ["team"]
        raise StudentError("no more")

    with pytest.raises(StudentError, match="no more"):
        list(scorer.stream(windows()))


def test_a_copy_in_bfloat16_says_nearly_the_same(tiny_student: str, scorer: Scorer) -> None:
    tokenizer, model = loaded(tiny_student)
    model.train()
    copied = scoring_copy(model, bfloat16=True)
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    texts = make_texts(30, 4)[0]
    rough = Scorer(tokenizer, copied, max_length=32).probabilities(texts)
    assert rough == pytest.approx(scorer.probabilities(texts), abs=0.01)
    assert not np.array_equal(rough, scorer.probabilities(texts))


def test_dropout_passes_spread_around_the_plain_one(tiny_student: str) -> None:
    tokenizer, model = loaded(tiny_student)
    texts = ["team", "phone shares"]
    plain = Scorer(tokenizer, model, max_length=32).probabilities(texts)
    several = Scorer(tokenizer, model, max_length=32, dropout_passes=2)
    ((_, first),), ((_, second),), ((_, again),) = (
        list(several.stream([("window", texts)], seed)) for seed in (1, 2, 1)
    )
    assert first.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)
    many = Scorer(tokenizer, model, max_length=32, dropout_passes=300).probabilities(texts)
    assert np.abs(many - plain).max() < np.abs(first - plain).max() + 0.02
    assert many == pytest.approx(plain, abs=0.05)


def test_dropout_passes_of_a_student_without_dropout_are_refused(tiny_student: str) -> None:
    model = student_of(StudentConfig(model=tiny_student), LABELS, dropout=False)
    with pytest.raises(StudentError, match=r"mc_dropout needs a student with dropout"):
        Scorer(None, model, max_length=32, dropout_passes=4)


def test_a_copy_in_bfloat16_keeps_its_buffers(tiny_student: str) -> None:
    _, model = loaded(tiny_student)
    model.register_buffer("frequencies", torch.tensor([0.1234567]))
    copied = scoring_copy(model, bfloat16=True)
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert torch.equal(copied.frequencies, model.frequencies)


@pytest.fixture(scope="module")
def tiny_decoder(tiny_student: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random decoder whose config says another padding token than its tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    folder = str(tmp_path_factory.mktemp("decoder"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, pad_token_id=7,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_decoder_reads_its_answer_off_the_last_word_not_off_padding(tiny_decoder: str) -> None:
    scorer = Scorer(*loaded(tiny_decoder), max_length=32)
    texts = ["team", "the phone was a new goal on the market today", "match of the day"]
    together = scorer.probabilities(texts)
    alone = np.concatenate([scorer.probabilities([text]) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on CPUs")
def test_a_compiled_student_says_the_same(tiny_student: str, scorer: Scorer) -> None:
    texts = make_texts(20, 4)[0]
    compiled = Scorer(*loaded(tiny_student), max_length=32, compiled=True, tokens_per_batch=64)
    assert compiled.probabilities(texts) == pytest.approx(scorer.probabilities(texts), abs=1e-5)


def test_labels_go_into_the_model(tiny_student: str) -> None:
    _, model = loaded(tiny_student)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {name: i for i, name in enumerate(LABELS)}


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(StudentError, match="cannot load no/such-model"):
        load_student(StudentConfig(model="no/such-model"), LABELS)


@pytest.mark.parametrize("kind", ["tiny_student", "tiny_decoder"])
def test_features_are_what_the_head_reads(request: pytest.FixtureRequest, kind: str) -> None:
    model = request.getfixturevalue(kind)
    torch.manual_seed(0)
    tokenizer, student = load_student(StudentConfig(model=model), LABELS)
    texts = ["one text", "another longer text about something else", "x"]
    device = torch.device("cpu")
    frozen = FrozenStudent(tokenizer, student, max_length=32, bfloat16=False, device=device)
    features_nd = frozen.features(texts)
    with torch.no_grad():
        found = torch.softmax(head_of(student)(torch.from_numpy(features_nd)), dim=-1)
    scorer = Scorer(tokenizer, scoring_copy(student, False), max_length=32)
    assert np.allclose(found.numpy(), scorer.probabilities(texts), atol=1e-5)
