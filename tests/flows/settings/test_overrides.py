from pathlib import Path

import pytest

from dfkd_core.errors import ConfigError
from flows.settings.overrides import apply_overrides, apply_preset, override, preset_names
from flows.settings.params import Params
from flows.settings.parsing import load_params


def test_override__changes_values_and_keeps_comments(project: Path) -> None:
    before = Path("params.yaml").read_text()
    changes = override(None, ["synthesis.num_images=2000", "execution.device=cpu"], load_params())
    assert [str(change) for change in changes] == [
        f"synthesis.num_images: {Params().synthesis.num_images} -> 2000",
        "execution.device: auto -> cpu",
    ]
    after = Path("params.yaml").read_text()
    differing = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert differing == ["  num_images: 2000", "  device: cpu"]


def test_override__preset_resets_everything_else(project: Path) -> None:
    override(None, ["seed=7", "distillation.epochs=99"], load_params())
    override("digits", ["seed=3"], load_params())
    assert load_params() == apply_overrides(apply_preset("digits"), ["seed=3"])
    override("default", [], load_params())
    assert load_params() == Params()


def test_override__same_values_change_nothing(project: Path) -> None:
    assert override("default", ["seed=0"], load_params()) == []


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
def test_override__bad_assignment_writes_nothing(project: Path, assignment: str, message: str) -> None:
    before = Path("params.yaml").read_text()
    with pytest.raises(ConfigError, match=message):
        override(None, ["execution.device=cpu", assignment], load_params())
    assert Path("params.yaml").read_text() == before


def test_override__unknown_preset_names_the_known_ones(project: Path) -> None:
    with pytest.raises(ConfigError, match=", ".join(preset_names())):
        override("fats", [], load_params())
