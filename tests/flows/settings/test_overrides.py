from contextlib import suppress
from pathlib import Path

import pytest

from dfkd_core.errors import ConfigError
from dfkd_flows.settings.overrides import apply_overrides, apply_preset, changes_between, preset_names, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params


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


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["seed=1", "seed=2"], r"seed is set twice: first seed=1, then seed=2\. Leave one out"),
        (["data.dataset=mnist", "data={dataset: digits}"], "data is set twice, which holds data.dataset"),
        (["data={dataset: mnist, dataset: digits}"], "the key 'dataset' is there twice"),
    ],
)
def test_apply_overrides__a_key_twice_is_an_error(assignments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(Params(), assignments)


def test_apply_overrides__a_part_of_a_section_may_follow_it() -> None:
    changed = apply_overrides(
        Params(),
        ["teacher.source={model: lenet5}", 'teacher.layer=""', "teacher.source.num_classes=3", "teacher.layer=fc1"],
    )
    assert (changed.teacher.source.num_classes, changed.teacher.layer) == (3, "fc1")


@pytest.mark.parametrize("text", ["1e4", "1E4", "1.0e4", "1.e4", "0.1e5", "1_0e3", "+1e+4", "10000", "10_000"])
def test_apply_overrides__integers_in_scientific_form(text: str) -> None:
    changed = apply_overrides(Params(), [f"synthesis.num_images={text}"])
    assert repr(changed.synthesis.num_images) == "10000"


@pytest.mark.parametrize("text", ["1.5", "1e-1", "15e-1", "1e400", ".inf", ".nan", "1e19", "true", "1e"])
def test_apply_overrides__what_is_no_integer_stays_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="synthesis"):
        apply_overrides(Params(), [f"synthesis.num_images={text}"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "seed: 3\n"),
        ("# Mine.\n", "# Mine.\nseed: 3\n"),
        ("# Mine.\r\nseed: 1 # why\r\n", "# Mine.\r\nseed: 3 # why\r\n"),
        ("data: {}\r\n", "data: {}\r\nseed: 3\r\n"),
        ("\ufeffseed: 1\n", "\ufeffseed: 3\n"),
        ("seed: 1\ndata:\n  # all by default\n", "seed: 3\ndata:\n  # all by default\n"),
        ("seed: 1e1\n", "seed: 3\n"),
        ("--- # start\nseed: 1\n...\n", "--- # start\nseed: 3\n...\n"),
        ("data: &d {dataset: digits}\nseed: 1\n", "data: &d {dataset: digits}\nseed: 3\n"),
        ("{data: {}, # all\n seed: 1} # end", "{data: {}, # all\n seed: 3} # end"),
        ("{data: {},} # end", "{data: {}, seed: 3} # end"),
        ('"seed"   :   01 # why', '"seed"   :   3 # why'),
        ("? seed\n: 1\n", "? seed\n: 3\n"),
        ("data:\n    image_size: 32\n# end", "data:\n    image_size: 32\nseed: 3\n# end"),
    ],
)
def test_write_params__unusual_forms_stay_as_they_are(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(before.encode())
    write_params(changes_between(load_params(path), apply_overrides(load_params(path), ["seed=3"])), path)
    assert path.read_bytes().decode() == after
    assert load_params(path).seed == 3


@pytest.mark.parametrize(
    "text",
    [
        "teacher: {source: &s {image_size: 32}}\ndata: *s\n",
        "seed: &n 3\nteacher:\n  epochs: *n\n",
        "teacher: &t {epochs: 1}\ndistillation: {<<: *t, epochs: 2}\n",
    ],
)
def test_write_params__of_aliases_either_works_or_leaves_the_file_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    wanted = apply_overrides(load_params(path), ["data.image_size=64", "teacher.epochs=5"])
    with suppress(ConfigError):
        write_params(changes_between(load_params(path), wanted), path)
    assert (path.read_text() == text) is (load_params(path) != wanted)


def test_write_params__a_form_that_it_cannot_change_is_reported_with_the_values(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("teacher: {source: &s {image_size: 32}}\ndata: *s\n")
    changes = changes_between(load_params(path), apply_overrides(load_params(path), ["data.image_size=64"]))
    with pytest.raises(ConfigError, match=r"such as aliases\. Set this in it by hand: data\.image_size=64"):
        write_params(changes, path)


def test_write_params__keeps_a_link_and_text_that_yaml_would_misread(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("seed: 1\n")
    path = tmp_path / "params.yaml"
    path.symlink_to("shared.yaml")
    names = ["no", "yes", "1.0", "1e4", "2020-01-01", "null", "~", "012", "a: b", "- x", "plain", "#1"]
    changed = apply_overrides(load_params(path), [f"teacher.source.class_names={names}", "registry.model_name='12'"])
    write_params(changes_between(load_params(path), changed), path)
    assert path.is_symlink()
    assert load_params(path).teacher.source.class_names == tuple(names)
    assert load_params(path) == changed
    assert "plain," in path.read_text() or "- plain\n" in path.read_text()
