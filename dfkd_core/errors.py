"""Every error that a user of this package may want to catch, and the first line of an error of a library.

    DfkdError
    ├── ConfigError         a parameter is unknown, ill-typed or out of range
    ├── DataError           a data set is missing, corrupt or does not match its name
    ├── TeacherError        a teacher cannot be used: layer path, outputs, weights
    ├── SynthesisError      a transfer image cannot be made: non-finite loss, collapse
    ├── TransferSetError    a stored transfer set is changed, truncated or belongs to another teacher
    ├── DistillationError   the student cannot be trained: non-finite loss, bad checkpoint
    └── ExportError         an exported form cannot be made, or does not compute the same as the student

A message states what is wrong, the value, the allowed values, and the next command.
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
    "first_line",
]


class DfkdError(Exception):
    """Base of all errors that the input causes, not the program.

    Example:
        >>> from dfkd_core import DataConfig, DfkdError
        >>> try:
        ...     DataConfig(image_size=0)
        ... except DfkdError as error:
        ...     print(error)
        image_size must be at least 1, got 0
    """


class ConfigError(DfkdError, ValueError):
    """A parameter is unknown, ill-typed or out of range."""


class DataError(DfkdError):
    """A data set is missing, corrupt or does not match its name."""


class TeacherError(DfkdError):
    """A teacher cannot be used as it is."""


class SynthesisError(DfkdError):
    """A transfer image cannot be made."""


class TransferSetError(DfkdError):
    """A stored transfer set is changed, truncated or belongs to another teacher."""


class DistillationError(DfkdError):
    """The student cannot be trained."""


class ExportError(DfkdError):
    """An exported form cannot be made, or does not compute the same as the student."""


def first_line(error: BaseException, *, longest: int | None = 200) -> str:
    """Return the first line of an error's text, or the name of its class if it has none.

    Args:
        error: Any error, for example of a library; the message of a `DfkdError` is never cut.
        longest: Most characters; None for no limit.
    """
    if isinstance(error, DfkdError):
        longest = None
    if isinstance(error, SystemExit):
        return f"its code calls sys.exit({error.code!r}), which ends the program"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]
