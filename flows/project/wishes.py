"""What the user wants of a new project. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Wishes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user wants of a new project."""

    here: Path
    """Folder from which relative paths start."""
    teacher: str | None = None
    weights: str | None = None
    student: str | None = None
    dataset: str | None = None
    """Images to judge the student on, as `data.dataset`; None is `none` for a teacher from elsewhere."""
    trust_pickle: bool = False
    trusted: tuple[str, ...] = ()
    """Factories that a stored teacher may call."""
    preset: str | None = None
    assignments: tuple[str, ...] = ()
    """Changes made after it, like `synthesis.num_images=2000`."""

    @property
    def are_none(self) -> bool:
        """Whether the project gets the defaults."""
        options = (self.teacher, self.weights, self.student, self.dataset, self.trust_pickle, self.preset)
        return not any((*options, self.assignments))
