import pickle

import pytest

from llkd import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_survive_pickle(kind: type[errors.LLKDError]) -> None:
    again = pickle.loads(pickle.dumps(kind("what, where, what to do")))
    assert type(again) is kind
    assert isinstance(again, errors.LLKDError)
    assert str(again) == "what, where, what to do"
