"""The errors that users see: what is wrong with a file, setting or row, and what to do about it.

An error consists only of its two arguments, so it survives pickling between Ray processes.
"""

from typing import ClassVar


class LLKDError(Exception):
    """Base of all errors that LLKD raises on purpose."""

    default_remedy: ClassVar[str] = "Run the same command again; if it fails again, see the log."

    def __init__(self, what: str, remedy: str | None = None) -> None:
        """
        Args:
            what: what is wrong, naming the file, setting or row and its value.
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

    default_remedy = "Correct the setting and run the same command again."


class DataError(LLKDError):
    """The corpus or the test set cannot be read as the config describes it."""

    default_remedy = (
        "Correct the file or the setting that names it, and run the same command again."
    )


class FingerprintError(LLKDError):
    """The run directory was created with other settings than the config's."""

    default_remedy = "Set run_dir to a new directory, or restore the settings."


class RejectLimitError(LLKDError):
    """More rows were rejected than `max_reject_fraction` allows."""

    default_remedy = "Correct the rejected rows listed there, or raise max_reject_fraction."


class IncompleteError(LLKDError):
    """A stage ended with missing shards, or depends on a stage that has not run."""

    default_remedy = "Run the same command again: finished work is not repeated."


class TeacherError(LLKDError):
    """The teacher cannot be loaded, or its tokenizer cannot express the labels."""

    default_remedy = "Correct the teacher section of the config and run the same command again."


class ActorError(LLKDError):
    """A worker process died too often during start-up or on one task."""

    default_remedy = "See the log for its last output. If memory is short, lower teacher.replicas."


class StudentError(LLKDError):
    """The student cannot be loaded or trained."""

    default_remedy = "Correct the student section of the config and run the same command again."


class ExportError(LLKDError):
    """The student or the labelled rows cannot be exported or pushed."""


class ResourceError(LLKDError):
    """The Ray cluster can never provide the resources that a stage requests."""


class StorageError(LLKDError):
    """A file of the run directory is damaged or cannot be written."""

    default_remedy = (
        "Make sure that the storage is reachable and writable, and run the same command again."
    )


class DamageError(StorageError):
    """A file is corrupt or missing, as opposed to temporarily unreachable."""

    default_remedy = (
        "Run the same command again: it recreates the file, or reports what else to do."
    )


class ChaosError(LLKDError):
    """A run lost data under fault injection, or fails even without it."""

    default_remedy = "See the log named there."


class BusyError(LLKDError):
    """Another process is using the run directory."""

    default_remedy = "Wait for it to finish, or set run_dir to another directory."
