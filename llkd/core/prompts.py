"""The teacher's prompt, as conversation turns or as plain text.

The part that all rows share comes first, so that the engine computes it once (prefix caching); the
row's own text comes last. The prompt holds slots instead of texts. Texts are inserted later, as
tokens, so that no text can forge the prompt's structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


TEXT_SLOT = "\x00"
"""Placeholder of a text: of each example, and last of the row. Ingest rejects texts with NUL."""
CHARACTERS_PER_TOKEN = 32
"""Upper bound in running text: a long text's first tokens are found without tokenising all of it."""


def instructions(
    instruction: str, labels: Mapping[str, str | None], codes: Mapping[str, str] | None = None
) -> str:
    """The question and the labels, with their descriptions if given.

    Args:
        instruction: the question.
        labels: the description of each label by its name, or None.
        codes: the answer that stands for each label; None if the names are the answers.
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
        system: the result of `instructions`.
        answers: the expected answer to each example.
    """
    question = Turn("user", f"Text: {TEXT_SLOT}\nLabel:")
    turns = [Turn("system", system)]
    for answer in answers:
        turns += [question, Turn("assistant", answer)]
    return [*turns, question]


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The same conversation for a chat template without a system role."""
    system, first, *rest = turns
    return [Turn("user", f"{system.content}\n\n{first.content}"), *rest]


def completion_text(system: str, answers: Sequence[str]) -> str:
    """A plain-text prompt up to the row's answer, for models without a chat template."""
    shown = "".join(f"Text: {TEXT_SLOT}\nLabel: {answer}\n\n" for answer in answers)
    return f"{system}\n\n{shown}Text: {TEXT_SLOT}\nLabel:"
