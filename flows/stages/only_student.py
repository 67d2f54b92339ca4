"""A teacher's only student is checked before hours of work for it; one of several must not stop the others."""

from __future__ import annotations

from dfkd_core.distillation.students import check_student
from dfkd_core.models.classifier import ModelCard
from dfkd_flows.settings.params import Params

__all__ = ["check_only_student"]


def check_only_student(card: ModelCard, params: Params) -> None:
    """Check whether the student fits its teacher if it is the only one; each of several is checked before its training.

    Args:
        card: Description of the teacher.
        params: Parameters of that teacher, as `Params.for_teacher` returns them.

    Raises:
        ConfigError: The student cannot be built or does not fit.
    """
    if len(params.students) == 1:
        check_student(card, params.for_student(*params.students).distillation)
