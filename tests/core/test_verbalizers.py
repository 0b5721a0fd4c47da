"""Trees of label tokens, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.verbalizers import (
    Question,
    clashing_labels,
    first_token_verbalizer,
    sequence_verbalizer,
)
from llkd.errors import TeacherError

CARD, LOST, STOLEN, CASH, END = 1, 2, 3, 4, 9
CARDS = {"card lost": [CARD, LOST], "card stolen": [CARD, STOLEN], "cash": [CASH]}
LOG = np.log


def test_first_tokens_are_one_question() -> None:
    verbalizer = first_token_verbalizer("word", {"a": [5, 7], "b": [6]}, 128)
    assert verbalizer.questions == (Question((), (5, 6)),)
    assert verbalizer.logprobs([LOG([[0.5, 0.2]])]) == pytest.approx(LOG([[0.5, 0.2]]))


def test_first_tokens_that_clash_are_refused() -> None:
    assert clashing_labels(CARDS) == ("card lost", "card stolen")
    with pytest.raises(TeacherError, match="'card lost' and 'card stolen' begin with the same"):
        first_token_verbalizer("word", CARDS, 128)


def test_a_sequence_is_the_product_along_its_way() -> None:
    verbalizer = sequence_verbalizer(CARDS, END, 128)
    assert verbalizer.questions == (Question((), (CARD, CASH)), Question((CARD,), (LOST, STOLEN)))
    answers = [LOG([[0.5, 0.3], [0.2, 0.8]]), LOG([[0.6, 0.1], [0.5, 0.5]])]
    expected = [[0.5 * 0.6, 0.5 * 0.1, 0.3], [0.2 * 0.5, 0.2 * 0.5, 0.8]]
    assert np.exp(verbalizer.logprobs(answers)) == pytest.approx(np.array(expected))


def test_a_label_that_begins_another_ends_with_the_end_token() -> None:
    labels = {"card": [CARD], "card lost": [CARD, LOST], "cash": [CASH]}
    verbalizer = sequence_verbalizer(labels, END, 128)
    assert verbalizer.questions == (
        Question((), (CARD, CASH)),
        Question((CARD,), (END, LOST)),
        Question((CARD, LOST), (END,)),
        Question((CASH,), (END,)),
    )
    answers = [LOG([[0.5, 0.4]]), LOG([[0.7, 0.2]]), LOG([[0.9]]), LOG([[0.5]])]
    expected = [[0.5 * 0.7, 0.5 * 0.2 * 0.9, 0.4 * 0.5]]
    assert np.exp(verbalizer.logprobs(answers)) == pytest.approx(np.array(expected))
    with pytest.raises(TeacherError, match="'card' begins label 'card lost'"):
        sequence_verbalizer(labels, None, 128)


def test_labels_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(TeacherError, match="'a' and 'b' are the same tokens"):
        sequence_verbalizer({"a": [1, 2], "b": [1, 2]}, END, 128)


def test_more_tokens_than_the_engine_takes_are_asked_for_in_parts() -> None:
    labels = {str(i): [i] for i in range(5)}
    verbalizer = first_token_verbalizer("word", labels, 2)
    assert [question.tokens for question in verbalizer.questions] == [(0, 1), (2, 3), (4,)]
    answers = [np.array([[0.0, -1.0]]), np.array([[-2.0, -3.0]]), np.array([[-4.0]])]
    assert verbalizer.logprobs(answers).tolist() == [[0.0, -1.0, -2.0, -3.0, -4.0]]
