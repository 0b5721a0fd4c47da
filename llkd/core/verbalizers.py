"""How labels are said in tokens, and how their log-probabilities are put together.

A label is a sequence of tokens after the prompt, and its log-probability is the sum of its
tokens' by the chain rule. All labels together are a tree of tokens. At every inner node of it the
model is asked once for the log-probabilities of the node's children; a label is the sum along its
way. Words that differ in their first token, and codes of one token, are the case of one node.

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
"""What can stand for labels under `code`, the best first. A tokenizer that cuts numbers into
digits has most pairs of letters as one token, and the other way round."""


@dataclass(frozen=True)
class Question:
    """The log-probabilities of some tokens after the prompt and a path of tokens."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Verbalizer:
    """What to ask of the model for C labels, and how the answers make their log-probabilities."""

    name: VerbalizerName
    questions: tuple[Question, ...]
    parts: tuple[tuple[tuple[int, int], ...], ...]
    """For each label the (question, token within it) whose log-probabilities it sums."""

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
    name: VerbalizerName, label_tokens: Mapping[str, Sequence[int]], most_tokens: int
) -> Verbalizer:
    """Each label by its first token alone.

    Args:
        name: what it is called.
        label_tokens: the tokens of each label after the prompt, by its name.
        most_tokens: tokens that the engine can be asked for at once.

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
        name, {label: tokens[:1] for label, tokens in label_tokens.items()}, most_tokens
    )


def sequence_verbalizer(
    label_tokens: Mapping[str, Sequence[int]], end_token: int | None, most_tokens: int
) -> Verbalizer:
    """Each label by all of its tokens.

    Where one label is the beginning of another, the shorter would always win; all labels then
    end with `end_token`, the token with which the model ends its answer.

    Args:
        label_tokens: the tokens of each label after the prompt, by its name.
        end_token: ends an answer; None if the model has no such token.
        most_tokens: tokens that the engine can be asked for at once.

    Raises:
        TeacherError: a label begins another and there is no end token, or two have the same tokens.
    """
    sequences = {label: tuple(tokens) for label, tokens in label_tokens.items()}
    ordered = sorted(sequences.items(), key=lambda item: item[1])
    begins = [
        (short, long)
        for (short, first), (long, second) in pairwise(ordered)
        if second[: len(first)] == first
    ]
    if begins:
        short, long = begins[0]
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
    return label_tree("sequence", sequences, most_tokens)


def clashing_labels(label_tokens: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
    """Two labels that begin with the same token; None if there are none."""
    first: dict[int, str] = {}
    for label, tokens in label_tokens.items():
        other = first.setdefault(tokens[0], label)
        if other != label:
            return other, label
    return None


def label_tree(
    name: VerbalizerName, sequences: Mapping[str, Sequence[int]], most_tokens: int
) -> Verbalizer:
    """The questions of the tree's inner nodes; one with many children is asked in several.

    Args:
        name: what the verbalizer is called.
        sequences: the tokens of each label; labels with the same tokens get the same number.
        most_tokens: tokens that the engine can be asked for at once.
    """
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for tokens in sequences.values():
        for depth, token in enumerate(tokens):
            children.setdefault(tuple(tokens[:depth]), {})[token] = None
    questions: list[Question] = []
    place: dict[tuple[tuple[int, ...], int], tuple[int, int]] = {}
    for path, below in children.items():
        asked = list(below)
        for start in range(0, len(asked), most_tokens):
            part = tuple(asked[start : start + most_tokens])
            place |= {(path, token): (len(questions), i) for i, token in enumerate(part)}
            questions.append(Question(path, part))
    parts = tuple(
        tuple(place[tuple(tokens[:depth]), token] for depth, token in enumerate(tokens))
        for tokens in sequences.values()
    )
    return Verbalizer(name, tuple(questions), parts)
