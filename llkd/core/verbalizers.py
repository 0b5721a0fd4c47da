"""Labels as tokens, and their log-probabilities from those of the tokens.

A label is a sequence of tokens after the prompt; by the chain rule, its log-probability is the sum
of theirs. All labels together form a tree of tokens. Each inner node is one question to the model:
the log-probabilities of its children. A label's log-probability is the sum along its path. Words
with distinct first tokens, and single-token codes, form a tree with one inner node.

    labels            tree                  questions                   label = sum of
    "card lost"       card ─┬─ lost         after ""    : card, cash    (0, card) + (1, lost)
    "card stolen"           └─ stolen       after "card": lost, stolen  (0, card) + (1, stolen)
    "cash"            cash                                              (0, cash)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from string import ascii_uppercase
from typing import Literal

import numpy as np

from llkd.errors import TeacherError

VerbalizerName = Literal["word", "code", "sequence"]

CODES = (
    *ascii_uppercase,
    *map(str, range(1, 1000)),
    *map("".join, product(ascii_uppercase, repeat=2)),
)
"""Candidate answers of the verbalizer `code`, in order of preference. Tokenizers that split numbers
into digits usually have pairs of letters as single tokens, and vice versa."""


@dataclass(frozen=True)
class Question:
    """The log-probabilities of some tokens after the prompt and a path of tokens."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Verbalizer:
    """The questions for C labels, and how their answers add up to log-probabilities."""

    name: VerbalizerName
    questions: tuple[Question, ...]
    parts: tuple[tuple[tuple[int, int], ...], ...]
    """For each label, the (question, index of the token) pairs to sum."""

    @property
    def classes(self) -> int:
        """C."""
        return len(self.parts)

    def logprobs(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        """Log-probability of each label: float32, shape (N, C).

        Args:
            answers: for each question the log-probabilities of its K tokens, shape (N, K).
        """
        rows = len(answers[0])
        logprobs_nc = np.zeros((rows, self.classes), dtype=np.float64)
        for label, parts in enumerate(self.parts):
            for question, token in parts:
                logprobs_nc[:, label] += answers[question][:, token]
        return logprobs_nc.astype(np.float32)


def first_token_verbalizer(
    name: VerbalizerName, label_tokens: Mapping[str, Sequence[int]], max_tokens: int
) -> Verbalizer:
    """A verbalizer by the first token of each label.

    Args:
        name: its name.
        label_tokens: the tokens of each label after the prompt, by its name.
        max_tokens: maximum tokens that the engine scores in one request.

    Raises:
        TeacherError: two labels begin with the same token.
    """
    clash = clashing_labels(label_tokens)
    if clash is not None:
        raise TeacherError(
            f"Labels {clash[0]!r} and {clash[1]!r} begin with the same token for this "
            f"teacher, so that teacher.verbalizer {name} cannot tell them apart",
            "Use auto, code or sequence, or rename one of them in task.labels.",
        )
    return label_tree(
        name, {label: tokens[:1] for label, tokens in label_tokens.items()}, max_tokens
    )


def sequence_verbalizer(
    label_tokens: Mapping[str, Sequence[int]], end_token: int | None, max_tokens: int
) -> Verbalizer:
    """A verbalizer by all tokens of each label.

    If one label is a prefix of another, it would always be at least as probable. All labels then
    end with `end_token`, which ends the model's answer.

    Args:
        label_tokens: the tokens of each label after the prompt, by its name.
        end_token: the token that ends an answer; None if the model has none.
        max_tokens: maximum tokens that the engine scores in one request.

    Raises:
        TeacherError: a label begins another and there is no end token, or two have the same tokens.
    """
    sequences = {label: tuple(tokens) for label, tokens in label_tokens.items()}
    ordered = sorted(sequences.items(), key=lambda item: item[1])
    prefixes = [
        (short, long)
        for (short, first), (long, second) in pairwise(ordered)
        if second[: len(first)] == first
    ]
    if prefixes:
        short, long = prefixes[0]
        if sequences[short] == sequences[long]:
            raise TeacherError(
                f"Labels {short!r} and {long!r} are the same tokens for this teacher",
                "Rename one of them in task.labels.",
            )
        if end_token is None:
            raise TeacherError(
                f"Label {short!r} begins label {long!r}, and this teacher has no token "
                "that ends an answer",
                "Use teacher.verbalizer code, or rename one of them in task.labels.",
            )
        sequences = {label: (*tokens, end_token) for label, tokens in sequences.items()}
    return label_tree("sequence", sequences, max_tokens)


def clashing_labels(label_tokens: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
    """Two labels that begin with the same token; None if there are none."""
    first: dict[int, str] = {}
    for label, tokens in label_tokens.items():
        other = first.setdefault(tokens[0], label)
        if other != label:
            return other, label
    return None


def label_tree(
    name: VerbalizerName, sequences: Mapping[str, Sequence[int]], max_tokens: int
) -> Verbalizer:
    """The verbalizer of a tree: a question per inner node, several if it has many children.

    Args:
        name: name of the verbalizer.
        sequences: the tokens of each label; equal sequences share their log-probability.
        max_tokens: maximum tokens that the engine scores in one request.
    """
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for tokens in sequences.values():
        for depth, token in enumerate(tokens):
            children.setdefault(tuple(tokens[:depth]), {})[token] = None
    questions: list[Question] = []
    place: dict[tuple[tuple[int, ...], int], tuple[int, int]] = {}
    for path, below in children.items():
        asked = list(below)
        for start in range(0, len(asked), max_tokens):
            part = tuple(asked[start : start + max_tokens])
            place |= {(path, token): (len(questions), i) for i, token in enumerate(part)}
            questions.append(Question(path, part))
    parts = tuple(
        tuple(place[tuple(tokens[:depth]), token] for depth, token in enumerate(tokens))
        for tokens in sequences.values()
    )
    return Verbalizer(name, tuple(questions), parts)
