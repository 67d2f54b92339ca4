"""Names of runs, teachers, students and data: short, and never a path."""

from __future__ import annotations

from typing import Any

import pytest

from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import parse_params
from dfkd_flows.shown.names import data_label, network_label, reevaluation_name, result_name, run_name, run_tags


def params(**content: Any) -> Params:
    return parse_params(content, source="test")


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("lenet5@0.5", "lenet5@0.5"),
        ("torchvision:resnet18@0.5", "resnet18@0.5"),
        ("timm:resnet34.a1_in1k", "resnet34.a1_in1k"),
        ("my_nets.zoo:make@0.5", "make@0.5"),
        ("models:/team.net@champion", "team.net"),
        ("models:/net/3", "net"),
        ("runs:/0123456789abcdef/model", "run 01234567"),
        ("/home/me/nets/best.v2.onnx", "best.v2"),
        ("nets/stored/", "stored"),
        ("teacher.pt2", "teacher"),
        ("auto", "auto"),
        ("n" * 60, "n" * 37 + "..."),
    ],
)
def test_network_label__is_short_and_no_path(source: str, label: str) -> None:
    assert network_label(source) == label


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("digits", "digits"),
        ("folder:/data/my images", "my images"),
        ("torchvision:SVHN", "SVHN"),
        ("file:a/b.npz", "b"),
        ("none", "no real images"),
    ],
)
def test_data_label__is_no_path(dataset: str, label: str) -> None:
    assert data_label(dataset) == label


def test_run__of_one_teacher_and_one_student() -> None:
    assert run_name(Params()) == "lenet5 on fashion_mnist -> lenet5@0.5"
    assert run_tags(Params()) == ["dfkd", "lenet5", "lenet5@0.5", "fashion_mnist"]
    own = params(data={"dataset": "none"}, teacher={"source": {"model": "nets/big.onnx"}})
    assert run_name(own) == "big without real images -> auto"


def test_result__names_data_teacher_student_and_start() -> None:
    own = params(data={"dataset": "digits"})
    assert result_name(own, "lenet5_half", "pruned") == "digits lenet5→lenet5_half pruned"
    shop = params(
        data={"dataset": "folder:/me/shop"},
        teachers={"big": {}},
        students={"tiny": {"teacher": "big"}},
        teacher={"source": {"model": "timm:resnet34"}},
    ).for_student("tiny")
    assert result_name(shop, "timm:resnet34@0.5", "random") == "shop big→tiny random"
    brought = params(data={"dataset": "none"}, teacher={"source": {"model": "nets/big.onnx"}})
    assert result_name(brought, "my_nets:make@0.5", "pruned") == "no real images big→make@0.5 pruned"


def test_run__of_several_students_is_a_short_sum() -> None:
    students = {name: {"teacher": "default"} for name in ("a", "b", "c", "d")}
    found = params(students=students)
    assert run_name(found) == "lenet5 on fashion_mnist -> 4 students"
    assert run_name(found.only(["a", "b"])) == "lenet5 on fashion_mnist -> a, b"
    two = {"one": {"data": {"dataset": "digits"}}, "two": {}}
    found = params(teachers=two, students={name: {"teacher": name} for name in two})
    assert run_name(found) == "2 teachers -> one, two"
    assert run_tags(found) == ["dfkd", "one", "two", "digits", "fashion_mnist"]


def test_reevaluation__has_the_students_and_their_data() -> None:
    assert reevaluation_name(Params()) == "reevaluate lenet5@0.5 on fashion_mnist"
    assert reevaluation_name(Params(), "folder:images/2026-11") == "reevaluate lenet5@0.5 on 2026-11"
    two = {"one": {"data": {"dataset": "digits"}}, "two": {}}
    found = params(teachers=two, students={name: {"teacher": name} for name in two})
    assert reevaluation_name(found) == "reevaluate one, two on digits, fashion_mnist"
