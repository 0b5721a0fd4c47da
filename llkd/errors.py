"""The errors a user can meet. Each message says what is wrong, where, and what to do.

Every class takes one message, so that it survives pickling between Ray processes.
"""


class LLKDError(Exception):
    """Base of all errors that LLKD raises on purpose."""


class ConfigError(LLKDError):
    """A setting is missing, unknown, of the wrong type, or contradicts another."""


class DataError(LLKDError):
    """The corpus or the test set cannot be read as the config describes it."""


class FingerprintError(LLKDError):
    """The run directory was made with other settings than the config's."""


class RejectLimitError(LLKDError):
    """More rows were rejected than `max_reject_fraction` allows."""


class IncompleteError(LLKDError):
    """A stage ended without all of its shards, or needs a stage that has not run."""


class TeacherError(LLKDError):
    """The teacher cannot be loaded, or its tokenizer cannot express the labels."""


class ActorError(LLKDError):
    """A worker process died too often at its start, or on one piece of work."""


class StudentError(LLKDError):
    """The student cannot be loaded or trained."""


class ExportError(LLKDError):
    """The student or the labelled rows cannot be exported as they should be, or not be pushed."""


class ResourceError(LLKDError):
    """The Ray cluster can never provide the resources that a stage asks for."""


class StorageError(LLKDError):
    """A file of the run directory is damaged or cannot be written."""


class DamageError(StorageError):
    """A file is not what was written, or is not there: not one that just cannot be reached."""


class ChaosError(LLKDError):
    """A run that was disturbed has lost something, or it fails even when left in peace."""


class BusyError(LLKDError):
    """Another process works in the run directory."""
