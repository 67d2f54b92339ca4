import datetime
import math
from pathlib import Path

import pytest
import yaml

from dfkd_core.common.digests import json_digest
from dfkd_core.errors import ConfigError
from dfkd_flows.settings.overrides import PRESETS, apply_preset, preset_names
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten, load_params, parse_params


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nseed: 2\n", "line 2: the key 'seed' is there twice"),
        (b"teacher:\n  epochs: 1\n  network: lenet5\n  epochs: 2\n", "line 4: the key 'epochs' is there twice"),
        (b"seed: 1\n---\nseed: 2\n", "line 2: expected a single document in the stream, but found another document"),
        (b"teacher:\n\tepochs: 1\n", "line 2: while scanning for the next token, found character '\\\\t'"),
        (b"<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> x\n", "line 1: there are merge markers of git"),
        (b"\xff\xfes\x00", "is not YAML, byte 0 is not UTF-8 text"),
        (b"seed: \x00\n", "unacceptable character"),
        (b"seed: 2020-13-45\n", "is not YAML, month must be in 1..12"),
        (b"seed: !!int x\n", "is not YAML, "),
        (b"seed: *gone\n", "line 1: found undefined alias 'gone'"),
        (b"seed: !!python/object:os.system {}\n", "could not determine a constructor"),
        (b"[" * 1200, "nested too deeply"),
        (b"data: &a {x: *a}\n", "anchors refer to themselves or repeat too much"),
        (
            b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(8)),
            "anchors refer to themselves or repeat too much",
        ),
    ],
)
def test_load_params__a_damaged_file_is_one_sentence_with_the_way_out(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "git checkout" in str(caught.value) or "delete the markers" in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "teacher:\ndata: {}\n", "\ufeff", "seed: 0\r\n"])
def test_load_params__empty_files_and_sections_have_the_defaults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode())
    assert load_params(path) == Params()


def test_load_params__merge_keys_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("teacher: &t {epochs: 3}\ndistillation:\n  <<: *t\n  epochs: 4\n")
    params = load_params(path)
    assert (params.teacher.epochs, params.distillation.epochs) == (3, 4)


ODD: list[object] = [None, [], {}, "", "text", True, -1, 2**70, 1e300, math.inf, math.nan, [[1]], {"a": 1}, {1: 2}]
ODD += [b"x", datetime.date(2020, 1, 1), {1, 2}, [None], "\x00", "\ud800"]


def one_path_per_type() -> list[str]:
    """Return sections and settings of all types."""
    paths = {type(value): path for path, value in flatten(Params()).items()}
    return [*paths.values(), "teacher.source", "teacher.source.arguments.width", "data.channels"]


@pytest.mark.parametrize("value", ODD, ids=ascii)
def test_parse_params__any_value_is_taken_or_refused_in_words(value: object) -> None:
    for path in one_path_per_type():
        if fault := fault_of(path, value):
            assert path.split(".")[0] in fault
            assert len(fault) < 1000
        else:
            json_digest(parse_params(nested(path, value), source="test"))


def fault_of(path: str, value: object) -> str:
    try:
        parse_params(nested(path, value), source="test")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "teacher: {source: {class_names: [no, yes]}}",
            r"class_names\.0: .*got False\. Put it in quotes",
        ),
        (
            "teacher: {source: {class_names: [1.0, 2]}}",
            r"class_names\.0: .*got 1\.0\. Put it in quotes",
        ),
        ("registry: {model_name: 12}", r"registry\.model_name: .*got 12\. Put it in quotes"),
        ("registry: {model_name: 2020-01-01}", "Put it in quotes: YAML reads"),
        ("registry: {model_name: a/b}", "registry: model_name must be .* got 'a/b'"),
        ("registry: {model_name: 'a:b'}", "registry: model_name must be"),
        ("registry: {model_name: ''}", "registry: model_name must be"),
        ("registry: {model_name: ' '}", "registry: model_name must be"),
        ("registry: {model_name: ..}", "registry: model_name must be"),
        ("registry: {model_name: a@b}", "registry: model_name must be"),
        (f"registry: {{model_name: {'a' * 101}}}", "registry: model_name must be"),
        ("execution: {device: gpu}", "execution: device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("registry: {experiment: ''}", "registry: experiment must be"),
        ("registry: {experiment: ' '}", "registry: experiment must be"),
        (f"registry: {{experiment: {'a' * 501}}}", "registry: experiment must be"),
        ("data: {image_size: 1000000}", "data.image_size: .* less than or equal to 2048, got 1000000"),
        ("execution: {num_threads: 1000000}", "execution.num_threads: .* less than or equal to 1024"),
        ("execution: {num_workers: 1e9}", "execution.num_workers: .* less than or equal to 1024"),
        ("execution: {memory_gib: 1e300}", "execution.memory_gib: .* less than or equal to"),
        ("seed: 1e30", "seed: .*exceeded maximum size"),
        ("seed: 9223372036854775808", "seed must be below 2.*63"),
        ("synthesis: [1, 2]", r"synthesis: should be a section, that is keys with values, got \[1, 2\]"),
        ("teacher: 3", "teacher: should be a section"),
    ],
)
def test_load_params__values_that_would_fail_later(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_params(path)


def test_load_params__one_number_for_all_channels(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("teacher: {source: {model: lenet5, mean: 0.5, std: 1, class_names: cat}}\ndata: {class_order: 1}\n")
    params = load_params(path)
    source = params.teacher.source
    assert (source.mean, source.std, source.class_names) == ((0.5,), (1.0,), ("cat",))
    assert params.data.class_order == (1,)
