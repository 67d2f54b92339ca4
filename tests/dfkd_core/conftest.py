from collections.abc import Callable

import pytest

from dfkd_core.models.passes import PassSizes
from dfkd_core.models.teacher import Teacher


class FixedSizes(PassSizes):
    """Passes of so many images, whatever the memory."""

    def __init__(self, teacher: Teacher, size: int) -> None:
        super().__init__(teacher.classifier)
        self._size = size

    def images_per_pass(self, num_images: int, *, with_gradient: bool) -> int:
        return min(num_images, self._size)


@pytest.fixture
def limit_passes() -> Callable[[Teacher, int], None]:
    """Return a function that lets a teacher take so many images at once."""

    def limit(teacher: Teacher, size: int) -> None:
        teacher.passes = FixedSizes(teacher, size)

    return limit
