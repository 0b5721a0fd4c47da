"""What the teacher is asked, as conversation turns or as plain text.

Everything that is the same for every row comes first, so that the engine computes it once
(prefix caching); the row's own text comes last. Texts are not written into it here but into
slots: they are put in as tokens later, so that no text can forge the prompt's structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


TEXT_SLOT = "\x00"
"""Stands where a text goes: an example's, or last the row's. NUL cannot occur in text that ingest
accepts."""


def instructions(
    instruction: str, labels: Mapping[str, str | None], codes: Mapping[str, str] | None = None
) -> str:
    """The question and the labels, with their descriptions where there are any.

    Args:
        instruction: the question.
        labels: name: description or None.
        codes: name: what the model is to answer in its place; None for the names themselves.
    """
    lines = []
    for name, description in labels.items():
        line = f"- {name}" if codes is None else f"- {codes[name]}: {name}"
        separator = ": " if codes is None else ", "
        lines.append(f"{line}{separator}{description}" if description else line)
    answer = "Answer with one label." if codes is None else "Answer with the code of one label."
    return "\n".join([instruction, "Labels:", *lines, answer])


def chat_turns(system: str, answers: Sequence[str]) -> list[Turn]:
    """The conversation up to the row's answer, with a slot for each example and for the row.

    Args:
        system: what `instructions` gave.
        answers: what the model is to answer to each example.
    """
    question = Turn("user", f"Text: {TEXT_SLOT}\nLabel:")
    turns = [Turn("system", system)]
    for answer in answers:
        turns += [question, Turn("assistant", answer)]
    return [*turns, question]


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The same conversation for a template that knows no system role."""
    system, first, *rest = turns
    return [Turn("user", f"{system.content}\n\n{first.content}"), *rest]


def completion_text(system: str, answers: Sequence[str]) -> str:
    """A plain prompt up to the answer, for models without a chat template."""
    shown = "".join(f"Text: {TEXT_SLOT}\nLabel: {answer}\n\n" for answer in answers)
    return f"{system}\n\n{shown}Text: {TEXT_SLOT}\nLabel:"
