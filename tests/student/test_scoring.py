"""The scorer, checked against one text at a time."""

import numpy as np
import pytest
import torch

from llkd.config import StudentConfig
from llkd.errors import StudentError
from llkd.student.model import load_student
from llkd.student.scoring import Scorer
from tests.fakes import make_texts

LABELS = ["sport", "tech", "trade"]


@pytest.fixture(scope="module")
def scorer(tiny_student: str) -> Scorer:
    torch.manual_seed(1)
    tokenizer, model = load_student(StudentConfig(model=tiny_student), LABELS)
    return Scorer(tokenizer, model, max_length=32, bfloat16=False)


def test_order_and_values_are_those_of_single_texts(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llkd.student.scoring.TOKENS_PER_BATCH", 64)
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


def test_scoring_leaves_the_model_as_it_was(scorer: Scorer) -> None:
    scorer._model.train()
    scorer.probabilities(["team"])
    assert scorer._model.training
    assert all(parameter.grad is None for parameter in scorer._model.parameters())


def test_labels_go_into_the_model(tiny_student: str) -> None:
    _, model = load_student(StudentConfig(model=tiny_student), LABELS)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {name: i for i, name in enumerate(LABELS)}


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(StudentError, match="cannot load no/such-model"):
        load_student(StudentConfig(model="no/such-model"), LABELS)
