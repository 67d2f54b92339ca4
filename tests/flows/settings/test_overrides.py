from pathlib import Path

import pytest

from dfkd_core.errors import ConfigError
from flows.settings.overrides import apply_overrides, apply_preset, changes_between, preset_names, write_params
from flows.settings.params import Params
from flows.settings.parsing import load_params


def write(preset: str | None, *assignments: str) -> list[str]:
    """Write the values of a preset and of assignments; return what changed."""
    current = load_params()
    changes = changes_between(current, apply_overrides(apply_preset(preset) if preset else current, assignments))
    write_params(changes)
    return [str(change) for change in changes]


def test_write_params__changes_values_and_keeps_comments(project: Path) -> None:
    before = Path("params.yaml").read_text()
    assert write(None, "synthesis.num_images=2000", "execution.device=cpu") == [
        f"synthesis.num_images: {Params().synthesis.num_images} -> 2000",
        "execution.device: auto -> cpu",
    ]
    after = Path("params.yaml").read_text()
    differing = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert differing == ["  num_images: 2000", "  device: cpu"]


def test_preset__resets_everything_else(project: Path) -> None:
    write(None, "seed=7", "distillation.epochs=99")
    write("digits", "seed=3")
    assert load_params() == apply_overrides(apply_preset("digits"), ["seed=3"])
    write("default")
    assert load_params() == Params()


def test_changes_between__same_values_are_none(project: Path) -> None:
    assert changes_between(load_params(), apply_overrides(apply_preset("default"), ["seed=0"])) == []


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("synthesis.num_imges=3", "did you mean synthesis.num_images"),
        ("synthesis.num_images=0", "greater than or equal to 1, got 0"),
        ("synthesis=3", "synthesis: "),
        ("seed=[1", "not YAML"),
    ],
)
def test_apply_overrides__bad_assignment_is_an_error(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Params(), ["execution.device=cpu", assignment])


def test_apply_preset__unknown_one_names_the_known_ones(project: Path) -> None:
    with pytest.raises(ConfigError, match=", ".join(preset_names())):
        apply_preset("fats")
