"""Named teachers and students: their settings, their places in params.yaml, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dfkd_core.errors import ConfigError
from dfkd_flows.settings.choosing import choose_teacher
from dfkd_flows.settings.overrides import apply_overrides, changes_between, place, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import check_complete, flatten, load_params, parse_params
from dfkd_flows.settings.settling import planned
from dfkd_flows.settings.teacher_source import placed_assignments, source_changes
from dfkd_flows.stages.names import addresses, label, last_stages

CONTENT: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "distillation": {"epochs": 7, "augmentation": {"shift": 0.125}},
    "teachers": {
        "default": None,
        "big": {"teacher": {"network": "resnet18"}, "synthesis": {"methods": {"noise": {"std": 1}}}},
    },
    "students": {
        "default": {"teacher": "default"},
        "small": {"teacher": "default", "distillation": {"augmentation": {"flip": True}, "student": "lenet5@0.25"}},
        "tall": {"teacher": "big", "registry": {"model_name": "tall-one"}, "evaluation": {"num_bins": 5}},
    },
}


@pytest.fixture
def params() -> Params:
    return parse_params(CONTENT, source="test")


def differing(one: Params, other: Params) -> dict[str, Any]:
    """Return the values of the sections in `one` that differ from those in `other`."""
    before, after = flatten(other), flatten(one)
    changed = {path: value for path, value in after.items() if before.get(path) != value}
    return {path: value for path, value in changed.items() if not path.startswith(("teachers", "students"))}


def test_for_student__has_the_changes_of_the_student_and_its_teacher_and_nothing_else(params: Params) -> None:
    assert differing(params.for_student("default"), params) == {}
    assert differing(params.for_student("small"), params) == {
        "distillation.augmentation.flip": True,
        "distillation.student": "lenet5@0.25",
    }
    tall = params.for_student("tall")
    assert differing(tall, params) == {
        "teacher.network": "resnet18",
        "synthesis.methods.noise.std": 1.0,
        "evaluation.num_bins": 5,
        "registry.model_name": "tall-one",
    }
    # The same type as in the section of all: other results would get other keys in the caches.
    assert type(tall.synthesis.methods.noise.std) is float
    assert (tall.teacher_name, tall.student_name) == ("big", "tall")
    assert params.for_student("small").distillation.augmentation.shift == 0.125


def test_for_teacher__has_the_changes_of_the_teacher_and_all_its_students(params: Params) -> None:
    assert [*params.for_teacher("default").students] == ["default", "small"]
    assert params.for_teacher("big").for_student("tall") == params.for_student("tall")
    assert params.only(["tall"]).teachers.keys() == {"big"}
    assert parse_params({"teachers": {"alone": {}}, "students": {}}, source="test").for_teacher("alone").students == {}


def test_stages__have_the_names_of_several_and_none_of_the_only_one(params: Params) -> None:
    assert [label(address, Params()) for address in addresses(Params())] == [
        "teacher",
        "statistics",
        "synthesize",
        "distill",
        "evaluate",
    ]
    assert len(addresses(params)) == 2 * 3 + 3 * 2
    assert label("synthesize@big", params) == "synthesize (big)"
    assert last_stages(params.only(["small"])) == ["evaluate@small"]
    unused = parse_params({"teachers": {"default": {}, "big": {}}}, source="test")
    assert last_stages(unused) == ["synthesize@big", "evaluate@default"]


def test_model_name__has_the_names_unless_the_student_sets_it(params: Params) -> None:
    names = {name: params.for_student(name).model_name("0123abcdef") for name in params.students}
    assert names == {
        "default": "dfkd-student-digits",
        "small": "dfkd-student-small-digits",
        "tall": "tall-one-digits",
    }
    away = parse_params({**CONTENT, "students": {"far": {"teacher": "big"}}}, source="test")
    assert away.for_student("far").model_name("0123abcdef") == "dfkd-student-big-far-digits"


def change(*assignments: str) -> dict[str, Any]:
    """Write changes into params.yaml of the current folder and return its teachers and students."""
    current = load_params()
    wanted = apply_overrides(current, assignments)
    write_params(changes_between(current, wanted))
    assert load_params() == wanted
    content = yaml.safe_load(Path("params.yaml").read_text())
    return {group: content[group] for group in ("teachers", "students")}


def test_changes__are_written_where_they_hold_and_keep_all_other_lines(project: Path) -> None:
    before = Path("params.yaml").read_text().splitlines()
    made = change("teachers.default.synthesis.num_images=2000", "students.small={teacher: default}")
    assert made["teachers"] == {"default": {"synthesis": {"num_images": 2000}}}
    assert set(before) - set(Path("params.yaml").read_text().splitlines()) == {"  default: {}"}
    made = change("students.small.distillation={epochs: 3, temperature: 2}", "synthesis.num_images=3000")
    assert made["students"]["small"]["distillation"] == {"epochs": 3, "temperature": 2.0}
    assert load_params().for_student("small").synthesis.num_images == 2000
    # A value that is left out is gone.
    made = change("students.small.distillation={epochs: 4}")
    assert made["students"]["small"]["distillation"] == {"epochs": 4}
    made = change("students={'no': {teacher: default}}")
    assert made["students"] == {"no": {"teacher": "default"}}


def test_preset__keeps_teachers_and_students(project: Path) -> None:
    change("students.small={teacher: default}", "students.small.distillation.epochs=3")
    with planned("digits", []) as plan:
        assert plan.params.students == load_params().students
        assert plan.params.data.dataset == "digits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {"a b": {}}}, "1 to 32 letters"),
        ({"teachers": {"../up": {}}}, "1 to 32 letters"),
        ({"teachers": {"-x": {}}}, "begin with a letter"),
        ({"teachers": {"x" * 33: {}}}, "1 to 32 letters"),
        ({"teachers": {"default": {}, "Default": {}}}, "differ only in upper and lower case"),
        ({"teachers": {}}, "there must be at least one"),
        ({"teachers": None}, "should be names with their changes"),
        ({"teachers": ["default"]}, "should be names with their changes"),
        ({"teachers": {"default": 3}}, "teachers.default: should be sections"),
        ({"teachers": {"default": {"distillation": {}}}}, "a teacher may change data, teacher, statistics, synthesis"),
        ({"teachers": {"default": {"sythesis": {}}}}, "did you mean teachers.default.synthesis?"),
        ({"teachers": {"default": {"synthesis": {"num_imges": 1}}}}, "teachers.default.synthesis.num_imges: unknown"),
        ({"teachers": {"default": {"synthesis": {"num_images": 0}}}}, "greater than or equal to 1, got 0"),
        ({"students": {"default": {}}}, "has no teacher. Give it one, for example teacher: default"),
        ({"students": {"default": {"teacher": "defalt"}}}, "no teacher 'defalt'; did you mean default?"),
        ({"students": {"default": {"teacher": 3}}}, "should be the name of a teacher"),
        ({"students": {"default": {"teacher": "default", "registry": {"model_name": "a/b"}}}}, "model_name must be"),
        (
            {"students": {name: {"teacher": "default", "registry": {"model_name": "m"}} for name in "ab"}},
            "students a and b would share the registered model m-fashion-mnist",
        ),
        (
            {"students": {n: {"teacher": "default", "distillation": {"student": f"lenet{n}"}} for n in ("x", "y")}},
            "students.x.distillation: student: no network 'lenetx'",
        ),
        (
            {"teachers": {"a": {"teacher": {"dataset": "none"}}, "b": {}}, "students": {}},
            "teachers.a: teacher training",
        ),
    ],
)
def test_faults__are_sentences_with_their_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_params(changes, source="test")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("students.small.distillation.epoch=3", "did you mean students.small.distillation.epochs?"),
        ("students.small.distillation.augmentation.flp=true", "students.small.distillation.augmentation.flip?"),
        ("students.small.epochs=3", "did you mean students.small.distillation.epochs?"),
        ("students.small.techer=big", "did you mean students.small.teacher?"),
        ("students.small.teacher.network=lenet5", "its settings are changed at teachers.NAME"),
        ("students.small.synthesis.num_images=3", "did you mean teachers.NAME.synthesis?"),
        ("teachers.big.num_images=3", "did you mean teachers.big.synthesis.num_images?"),
        ("teachers.big.num_epochs=3", "did you mean teachers.big.teacher.epochs?"),
        ("teachers.big.min_agreement=1", "did you mean students.NAME.registry.min_agreement?"),
        ("teachers.big.seed=3", "a teacher may change data, teacher, statistics, synthesis; did you mean seed?"),
        ("teachers.big.num_workers=3", "did you mean execution.num_workers?"),
        ("teachers.big.foo=1", "teachers.big.foo: unknown key; a teacher may change data,"),
        ("students.small.distillation.foo=1", "known here: augmentation, batch_norm_rate_factor,"),
        ("distillation.foo=1", "unknown key; known here: augmentation,"),
        ("epochs=3", "did you mean distillation.epochs or teacher.epochs?"),
    ],
)
def test_unknown_key__has_a_hint_that_can_be_set(params: Params, assignment: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(params, [assignment])
    assert hint in str(caught.value)


def test_sections_that_only_a_teacher_repairs__are_no_fault() -> None:
    trained = {"default": {"teacher": {"dataset": "digits"}}}
    assert parse_params({"data": {"dataset": "none"}, "teachers": trained}, source="test")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("teachers.defalt.seed=1", "No teacher 'defalt' in this project; did you mean default? Add one with: --set"),
        ("students.small.distillation.epochs=1", "Add one with: --set students.small='{teacher: default}'"),
    ],
)
def test_set__of_one_that_is_not_there_adds_none(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(Params(), [assignment])
    assert message in str(caught.value)


def test_a_file_without_teachers_and_students__is_completed_by_its_message(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="has no teachers and no students") as caught:
        check_complete(path)
    path.write_text(path.read_text() + str(caught.value).partition(":\n")[2])
    check_complete(path)
    assert load_params(path) == apply_overrides(Params(), ["seed=3"])


def test_place__is_the_base_section_for_an_only_one_that_does_not_change_it(params: Params) -> None:
    assert place("distillation.epochs", Params(), "default") == "distillation.epochs"
    own = apply_overrides(Params(), ["students.default.distillation.epochs=3"])
    assert place("distillation.epochs", own, "default") == "students.default.distillation.epochs"
    assert place("synthesis.num_images", params, "tall") == "teachers.big.synthesis.num_images"
    assert place("seed", params, "tall") == "seed"


def test_options__change_the_named_student_and_reset_its_teacher(params: Params, tmp_path: Path) -> None:
    based = apply_overrides(params, ["teacher.source={model: old.onnx, num_classes: 3}"])
    options = {"here": tmp_path, "weights": None, "trust_pickle": False}
    changes = source_changes(teacher="new.onnx", student="lenet5", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Name one: dfkd run NAME"):
        placed_assignments(changes, based)
    made = apply_overrides(based, placed_assignments(changes, based, ["tall"])).for_student("tall")
    assert (made.teacher.source.model, made.teacher.source.num_classes) == ("new.onnx", 0)
    assert made.distillation.student == "lenet5"
    assert based.for_student("small").teacher.source.num_classes == 3


def test_choose_teacher__takes_a_name_before_an_architecture(params: Params) -> None:
    assert choose_teacher("big", params) == (params.for_teacher("big"), "big")
    assert choose_teacher("resnet18", params) == (params, "")
    with pytest.raises(ConfigError, match=r"has the teachers default, big\. Choose one: --teacher NAME"):
        choose_teacher(None, params)
    assert choose_teacher(None, Params())[1] == "default"


def test_digests_of_files__are_noted_beside_the_setting_that_names_the_file(project: Path) -> None:
    Path("own_net.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(1, 1)\n")
    change("students.small={teacher: default}", "students.small.distillation.student=own_net:make")
    with planned(None, []) as plan:
        noted = [change.path for change in plan.changes]
        assert plan.shown() == []
    assert noted == ["students.small.distillation.student_sha256"]
    with planned(None, [], students=["default"]) as plan:
        assert plan.changes == ()
        assert plan.chosen.students.keys() == {"default"}
