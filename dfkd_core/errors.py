"""Every error that a user of this package may want to catch.

    DfkdError
    ├── ConfigError         a parameter is unknown, ill-typed or out of range
    ├── DataError           a data set is missing, corrupt or not what its name says
    ├── TeacherError        a teacher cannot be used: layer path, outputs, weights
    ├── SynthesisError      a transfer image cannot be made: non-finite loss, collapse
    ├── TransferSetError    a stored transfer set is changed, truncated or not this teacher's
    ├── DistillationError   the student cannot be trained: non-finite loss, bad checkpoint
    └── ExportError         an exported form cannot be made, or does not do what the student does

A message says what is wrong, the value, what is allowed, and the next command.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "DfkdError",
    "DistillationError",
    "ExportError",
    "SynthesisError",
    "TeacherError",
    "TransferSetError",
]


class DfkdError(Exception):
    """Base of all errors that are the input's fault and not the program's."""


class ConfigError(DfkdError, ValueError):
    """A parameter is unknown, ill-typed or out of range."""


class DataError(DfkdError):
    """A data set is missing, corrupt or not what its name says."""


class TeacherError(DfkdError):
    """A teacher cannot be used as given."""


class SynthesisError(DfkdError):
    """A transfer image cannot be made."""


class TransferSetError(DfkdError):
    """A stored transfer set is changed, truncated or belongs to another teacher."""


class DistillationError(DfkdError):
    """The student cannot be trained."""


class ExportError(DfkdError):
    """An exported form cannot be made, or does not do what the student does."""
