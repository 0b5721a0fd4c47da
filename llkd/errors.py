"""The errors a user can meet. Each message says what is wrong, where, and what to do.

Every class takes one message, so that it survives pickling between Ray processes. What to do is
its last part, from an imperative on: `it is too small. Raise it`, `it is too small: raise it`.
"""

import re
from typing import ClassVar

_IMPERATIVES = (
    "append", "check", "choose", "convert", "copy", "correct", "delete", "give", "leave", "lower",
    "make", "name", "pip install", "put", "raise", "rename", "run", "save", "see", "set", "shorten",
    "take", "use", "wait",
)  # fmt: skip
_REMEDY = re.compile(
    rf"\n(?=(?:{'|'.join(word.capitalize() for word in _IMPERATIVES)})\b)"
    rf"|(?<=[.!?)]) (?=(?:{'|'.join(word.capitalize() for word in _IMPERATIVES)})\b)"
    rf"|[;:] (?=(?:{'|'.join(_IMPERATIVES)})\b)"
)
"""What stands before the words that say what to do."""


class LLKDError(Exception):
    """Base of all errors that LLKD raises on purpose."""

    remedy: ClassVar[str] = "Run the same command again; if it fails again, see the log."
    """What to do, where the message does not say."""

    @property
    def lines(self) -> tuple[str, str]:
        """(what is wrong, what to do), a line each, whatever breaks the message has."""
        what, *todo = _REMEDY.split(str(self), maxsplit=1)
        return _one_line(what), _sentence(_one_line(todo[0])) if todo else self.remedy


def _one_line(text: str) -> str:
    """The lines of a text in one: a list after a colon is separated by semicolons."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = ""
    for line in lines:
        between = " " if not joined or joined.endswith((":", ".", ";", ",")) else "; "
        joined = f"{joined}{between}{line.removeprefix('- ')}" if joined else line
    return joined


def _sentence(text: str) -> str:
    if text.startswith("pip install"):
        return f"Install it: {text}"
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "'", "`")) else f"{text}."


class ConfigError(LLKDError):
    """A setting is missing, unknown, of the wrong type, or contradicts another."""

    remedy = "Correct the setting, and run the same command again."


class DataError(LLKDError):
    """The corpus or the test set cannot be read as the config describes it."""

    remedy = "Correct the file, or the setting that names it, and run the same command again."


class FingerprintError(LLKDError):
    """The run directory was made with other settings than the config's."""

    remedy = "Set run_dir to a new directory, or put the settings back."


class RejectLimitError(LLKDError):
    """More rows were rejected than `max_reject_fraction` allows."""

    remedy = "Look at the rows that are listed there: correct them, or raise max_reject_fraction."


class IncompleteError(LLKDError):
    """A stage ended without all of its shards, or needs a stage that has not run."""

    remedy = "Run the same command again: what is there is not done twice."


class TeacherError(LLKDError):
    """The teacher cannot be loaded, or its tokenizer cannot express the labels."""

    remedy = "Correct the section teacher of the config, and run the same command again."


class ActorError(LLKDError):
    """A worker process died too often at its start, or on one piece of work."""

    remedy = "See the log for what it said last. Where memory is short, lower teacher.replicas."


class StudentError(LLKDError):
    """The student cannot be loaded or trained."""

    remedy = "Correct the section student of the config, and run the same command again."


class ExportError(LLKDError):
    """The student or the labelled rows cannot be exported as they should be, or not be pushed."""


class ResourceError(LLKDError):
    """The Ray cluster can never provide the resources that a stage asks for."""


class StorageError(LLKDError):
    """A file of the run directory is damaged or cannot be written."""

    remedy = "See that the storage is there and can be written, and run the same command again."


class DamageError(StorageError):
    """A file is not what was written, or is not there: not one that just cannot be reached."""

    remedy = (
        "Run the same command again: what is missing is made anew, or it is told what else to do."
    )


class ChaosError(LLKDError):
    """A run that was disturbed has lost something, or it fails even when left in peace."""

    remedy = "See the log named there."


class BusyError(LLKDError):
    """Another process works in the run directory."""

    remedy = "Wait until it has ended, or set run_dir to another directory."
