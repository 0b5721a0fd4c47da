"""The errors that a user can meet: what is wrong with a file, setting or row, and what to do.

An error is made of its two arguments alone, so it survives pickling between Ray processes.
"""

from typing import ClassVar


class LLKDError(Exception):
    """Base of all errors that LLKD raises on purpose."""

    default_remedy: ClassVar[str] = "Run the same command again; if it fails again, read the log."

    def __init__(self, what: str, remedy: str | None = None) -> None:
        """
        Args:
            what: is wrong, and where: names the file, the setting or the row, and its value.
            remedy: what to do, in the imperative; None for the default of the class.
        """
        super().__init__(what, remedy)

    @property
    def what(self) -> str:
        """What is wrong, and where."""
        what: str = self.args[0]
        return what

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.args[1] or self.default_remedy

    def __str__(self) -> str:
        remedy = self.args[1]
        if remedy is None:
            return self.what
        end = "" if self.what.endswith((".", "!", "?", ":")) else "."
        return f"{self.what}{end} {remedy}"


class ConfigError(LLKDError):
    """A setting is missing, unknown, of the wrong type, or contradicts another."""

    default_remedy = "Correct the setting, and run the same command again."


class DataError(LLKDError):
    """The corpus or the test set cannot be read as the config describes it."""

    default_remedy = (
        "Correct the file, or the setting that names it, and run the same command again."
    )


class FingerprintError(LLKDError):
    """The run directory was made with other settings than the config's."""

    default_remedy = "Set run_dir to a new directory, or put the settings back."


class RejectLimitError(LLKDError):
    """More rows were rejected than `max_reject_fraction` allows."""

    default_remedy = (
        "Look at the rows that are listed there: correct them, or raise max_reject_fraction."
    )


class IncompleteError(LLKDError):
    """A stage ended without all of its shards, or needs a stage that has not run."""

    default_remedy = "Run the same command again: what is there is not done twice."


class TeacherError(LLKDError):
    """The teacher cannot be loaded, or its tokenizer cannot express the labels."""

    default_remedy = "Correct the section teacher of the config, and run the same command again."


class ActorError(LLKDError):
    """A worker process died too often at its start, or on one piece of work."""

    default_remedy = (
        "See the log for what it said last. Where memory is short, lower teacher.replicas."
    )


class StudentError(LLKDError):
    """The student cannot be loaded or trained."""

    default_remedy = "Correct the section student of the config, and run the same command again."


class ExportError(LLKDError):
    """The student or the labelled rows cannot be exported as they should be, or not be pushed."""


class ResourceError(LLKDError):
    """The Ray cluster can never provide the resources that a stage asks for."""


class StorageError(LLKDError):
    """A file of the run directory is damaged or cannot be written."""

    default_remedy = (
        "See that the storage is there and can be written, and run the same command again."
    )


class DamageError(StorageError):
    """A file is not what was written, or is not there: not one that just cannot be reached."""

    default_remedy = (
        "Run the same command again: what is missing is made anew, or it is told what else to do."
    )


class ChaosError(LLKDError):
    """A run that was disturbed has lost something, or it fails even when left in peace."""

    default_remedy = "See the log named there."


class BusyError(LLKDError):
    """Another process works in the run directory."""

    default_remedy = "Wait until it has ended, or set run_dir to another directory."
