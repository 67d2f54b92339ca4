from pathlib import Path

import pytest
import yaml

from dfkd_core.errors import ConfigError
from flows.settings.overrides import PRESETS, apply_preset, preset_names
from flows.settings.params import Params
from flows.settings.parsing import flatten, load_params, parse_params


def test_parse_params__empty_gives_the_defaults() -> None:
    assert parse_params({}, source="test") == Params()


def nested(path: str, value: object) -> object:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def test_parse_params__one_value_alone_leaves_all_others_at_their_defaults() -> None:
    for path, value in flatten(Params()).items():
        assert parse_params(nested(path, value), source="test") == Params(), path


def test_presets__change_what_they_say_and_nothing_else() -> None:
    for name in preset_names():
        said = yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) or {}
        preset, defaults = flatten(apply_preset(name)), flatten(Params())
        changed = {path: value for path, value in preset.items() if value != defaults[path]}
        assert changed.items() <= flatten(said).items(), name


def test_parse_params__lists_every_fault_by_its_path() -> None:
    content = {
        "sed": 1,
        "teacher": {"epochs": 0, "network": "lenet6"},
        "synthesis": {"num_images": "many", "methods": {"soft_target": {"refinement": {"prior": "lines"}}}},
        "distillation": {"learning_rte": 1, "temperature": -1},
    }
    with pytest.raises(ConfigError) as caught:
        parse_params(content, source="params.yaml")
    message = str(caught.value)
    for part in (
        "faults in params.yaml",
        "sed: unknown key; did you mean seed?",
        "teacher.epochs: input should be greater than or equal to 1, got 0",
        "synthesis.num_images: ",
        "synthesis.methods.soft_target.refinement.prior: ",
        "distillation.learning_rte: unknown key; did you mean distillation.learning_rate?",
        "distillation.temperature: input should be greater than 0, got -1",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["no", "off", "1.0", "7", "null", "2024-01-01"])
def test_parse_params__says_that_a_class_name_needs_quotes(name: str) -> None:
    def parse(text: str) -> Params:
        return parse_params(yaml.safe_load(f"teacher: {{source: {{class_names: [cat, {text}]}}}}"), source="test")

    with pytest.raises(ConfigError, match=r"teacher\.source\.class_names\.1: .* Put it in quotes: YAML reads no, yes"):
        parse(name)
    assert parse(f'"{name}"').teacher.source.class_names == ("cat", name)


def test_parse_params__fault_of_several_fields_names_the_section() -> None:
    with pytest.raises(ConfigError, match=r"teacher: network must be one of .* got 'lenet6'"):
        parse_params({"teacher": {"network": "lenet6"}}, source="test")


def test_parse_params__takes_numbers_that_yaml_reads_as_text() -> None:
    assert parse_params({"teacher": {"learning_rate": "1e-3"}}, source="test").teacher.learning_rate == 1e-3


def test_parse_params__not_a_mapping() -> None:
    with pytest.raises(ConfigError, match="1 fault"):
        parse_params([1], source="test")


def test_load_params__missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


def test_flatten__gives_dotted_paths() -> None:
    assert flatten({"a": {"b": 1}, "c": 2}) == {"a.b": 1, "c": 2}
    assert flatten(Params())["synthesis.methods.soft_target.refinement.prior"] == "mixed"
