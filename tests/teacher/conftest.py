"""Fixtures of the teacher's tests."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.demo import prepared


@pytest.fixture(scope="session")
def smollm() -> Any:
    """The tokenizer of the demo's teacher."""
    return AutoTokenizer.from_pretrained(prepared() / "teacher")
