from collections.abc import Iterator
from typing import Literal

import pytest

from dfkd_core.errors import ConfigError
from dfkd_core.sections import Fraction, Positive, PositiveInt, config_section


@config_section
class Section:
    kind: Literal["a", "b"] = "a"
    count: PositiveInt = 1
    rate: Positive = 0.1
    share: Fraction = 0.5

    def faults(self) -> Iterator[str]:
        if self.count > 10 and self.kind == "a":
            yield f"count must be at most 10 with kind 'a', got {self.count}"


def test_defaults_are_valid_and_frozen():
    section = Section()
    with pytest.raises(AttributeError):
        section.count = 2  # type: ignore[misc]  # what is tested


def test_every_fault_is_in_one_message():
    with pytest.raises(ConfigError) as error:
        Section(kind="c", count=0, rate=0.0, share=1.5)  # type: ignore[arg-type]  # what is tested
    assert str(error.value) == (
        "kind must be one of 'a', 'b', got 'c'; count must be at least 1, got 0; "
        "rate must be greater than 0, got 0.0; share must be at most 1, got 1.5"
    )


def test_rules_over_several_fields():
    assert Section(kind="b", count=11).count == 11
    with pytest.raises(ConfigError, match="at most 10 with kind 'a', got 11"):
        Section(count=11)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_must_be_finite(value):
    with pytest.raises(ConfigError, match="rate must be a finite number"):
        Section(rate=value)
