"""What the teacher is asked, as conversation turns or as plain text.

Everything that is the same for every row comes first, so that the engine computes it once
(prefix caching); the row's own text comes last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


TEXT_SLOT = "\x00"
"""Stands where the row's text goes. NUL cannot occur in text that ingest accepts."""


def instructions(instruction: str, labels: Mapping[str, str | None]) -> str:
    """The question and the labels, with their descriptions where there are any."""
    lines = [
        f"- {name}: {description}" if description else f"- {name}"
        for name, description in labels.items()
    ]
    return "\n".join([instruction, "Labels:", *lines, "Answer with one label."])


def chat_turns(
    instruction: str,
    labels: Mapping[str, str | None],
    examples: Sequence[tuple[str, str]],
) -> list[Turn]:
    """The conversation up to the answer: the last turn holds TEXT_SLOT in the text's place.

    Examples are (text, label) pairs, each shown as a question and its answer.
    """
    questions = [f"Text: {text}\nLabel:" for text, _ in examples] + [f"Text: {TEXT_SLOT}\nLabel:"]
    turns = [Turn("system", instructions(instruction, labels))]
    for question, (_, label) in zip(questions, examples, strict=False):
        turns += [Turn("user", question), Turn("assistant", label)]
    return [*turns, Turn("user", questions[-1])]


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The same conversation for a template that knows no system role."""
    system, first, *rest = turns
    return [Turn("user", f"{system.content}\n\n{first.content}"), *rest]


def completion_text(
    instruction: str,
    labels: Mapping[str, str | None],
    examples: Sequence[tuple[str, str]],
) -> str:
    """A plain prompt up to the answer, for models without a chat template."""
    shown = "".join(f"Text: {text}\nLabel: {label}\n\n" for text, label in examples)
    return f"{instructions(instruction, labels)}\n\n{shown}Text: {TEXT_SLOT}\nLabel:"
