import math
from typing import NamedTuple

import pytest
import torch

from dfkd_core.errors import TeacherError
from dfkd_core.models.outputs import (
    OutputKind,
    check_output_kind,
    find_output_key,
    find_output_kind,
    output_doubt,
    select_output,
    to_logits,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])


class Answer(NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (LOGITS, "logits"),
        (LOGITS.softmax(1), "probabilities"),
        (LOGITS.log_softmax(1), "log_probabilities"),
        (LOGITS.half().softmax(1), "probabilities"),
        (LOGITS.relu(), "logits"),
        (LOGITS[:, :1], "binary_logit"),
        (LOGITS[:, 0].sigmoid(), "binary_probability"),
        (LOGITS.clone().requires_grad_().sigmoid(), "sigmoids"),
        (LOGITS.clone().requires_grad_().sigmoid().view(2, 3).squeeze(), "sigmoids"),
        (LOGITS.clone().requires_grad_().tanh().abs(), "logits"),
        (LOGITS.sigmoid(), "logits"),
    ],
)
def test_what_a_network_answers_with_is_told_by_the_numbers(outputs, kind):
    assert find_output_kind(outputs) == kind


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"shape \(2, 3, 4, 4\) for 2 images; a classifier's is \(images, classes\)"),
        (torch.tensor([1, 2]), "torch.int64, which has no gradient"),
        (LOGITS.to(torch.complex64), "complex numbers"),
        (LOGITS / LOGITS.norm(dim=1, keepdim=True), "vectors of length 1 with 3 numbers: an embedding"),
    ],
)
def test_what_is_no_classification_is_refused(outputs, message):
    with pytest.raises(TeacherError, match=message):
        find_output_kind(outputs)


MANY = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (-MANY.log_softmax(1), "negated log-probabilities"),
        (MANY.log_softmax(1) / math.log(2), "base 2"),
        (MANY.log_softmax(1) / math.log(10), "base 10"),
        (100 * MANY.softmax(1), "the sum 100 for each image"),
        (MANY.softmax(1) / 5, "the sum 0.2 for each image"),
        (-MANY.softmax(1), "the sum -1 for each image"),
        (1 - MANY.softmax(1), "the sum 4 for each image"),
        ((255 * MANY.softmax(1)).half(), "the sum 255 for each image"),
        (2 * MANY.softmax(1) - 1, "from -1 to 1"),
    ],
)
def test_other_functions_of_probabilities__are_refused_with_the_setting(outputs, message):
    with pytest.raises(TeacherError, match=rf"{message}.*set teacher\.source\.outputs to logits"):
        find_output_kind(outputs)


@pytest.mark.parametrize(
    "outputs", [MANY.relu(), MANY - MANY.mean(1, keepdim=True), 1 + 1e-4 * MANY, MANY.abs(), MANY.square()[:2]]
)
def test_scores__are_no_function_of_probabilities(outputs):
    assert find_output_kind(outputs) == "logits"


def test_outputs_of_one_sign_are_doubtful():
    for outputs in (MANY.abs() + 1, -MANY.abs()):
        assert "are distances or costs" in output_doubt(outputs, "logits")


def test_log_probabilities__must_not_be_negated():
    with pytest.raises(TeacherError, match="returns them negated"):
        check_output_kind(-LOGITS.log_softmax(1), "log_probabilities")


def test_logits_mean_the_same_probabilities_whatever_the_network_answers_with():
    wanted = LOGITS.softmax(1)
    answers: dict[OutputKind, torch.Tensor] = {
        "logits": LOGITS,
        "log_probabilities": LOGITS.log_softmax(1),
        "probabilities": LOGITS.softmax(1),
        "sigmoids": LOGITS.sigmoid(),
    }
    for kind, outputs in answers.items():
        torch.testing.assert_close(to_logits(outputs, kind).softmax(1), wanted)


def test_one_number_speaks_for_the_second_of_two_classes():
    z = torch.tensor([[-1.5], [0.0], [4.0]])
    wanted = torch.cat([1 - z.sigmoid(), z.sigmoid()], 1)
    torch.testing.assert_close(to_logits(z, "binary_logit").softmax(1), wanted)
    torch.testing.assert_close(to_logits(z.sigmoid().flatten(), "binary_probability").softmax(1), wanted)


def test_probabilities_that_underflow_stay_finite_and_keep_a_gradient_elsewhere():
    outputs = torch.tensor([[1.0, 0.0]], requires_grad=True)
    logits = to_logits(outputs, "probabilities")
    assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (LOGITS, ""),
        ((LOGITS, 1), "0"),
        ({"logits": LOGITS, "hidden": LOGITS}, "logits"),
        ({"scores": LOGITS}, "scores"),
    ],
)
def test_the_logits_are_found_in_the_answer(output, key):
    assert find_output_key(output) == key
    assert torch.equal(select_output(output, key), LOGITS)


def test_attributes_and_indices_can_be_named():
    answer = Answer(LOGITS + 1, LOGITS)
    assert torch.equal(select_output(answer, "logits"), LOGITS)
    assert torch.equal(select_output(answer, "-1"), LOGITS)


def test_an_answer_that_cannot_be_told_apart_names_the_setting():
    with pytest.raises(TeacherError, match=r"mapping with a, b.*teacher\.source\.output_key"):
        find_output_key({"a": LOGITS, "b": LOGITS})
    with pytest.raises(TeacherError, match=r"mapping with a, in which 'c' is not a tensor"):
        select_output({"a": LOGITS}, "c")


def test_outputs_between_0_and_1_are_doubtful():
    assert "set teacher.source.outputs to sigmoids" in output_doubt(LOGITS.sigmoid(), "logits")
    assert "belongs to several classes" in output_doubt(LOGITS.sigmoid(), "sigmoids")
    assert output_doubt(LOGITS, "logits") == ""


@pytest.mark.parametrize(
    ("outputs", "kind", "fits"),
    [
        (LOGITS, "logits", True),
        (LOGITS, "log_probabilities", True),
        (LOGITS, "probabilities", False),
        (LOGITS, "sigmoids", False),
        (LOGITS, "binary_logit", False),
        (LOGITS[:, 0], "binary_logit", True),
        (LOGITS[:, :1], "binary_probability", False),
        (LOGITS[:, :1], "logits", False),
        (LOGITS.sigmoid(), "sigmoids", True),
        (LOGITS.softmax(1), "probabilities", True),
    ],
)
def test_a_kind_that_is_set_must_be_possible(outputs, kind, fits):
    if fits:
        check_output_kind(outputs, kind)
    else:
        with pytest.raises(TeacherError, match=rf"teacher\.source\.outputs is {kind}, and the network returns"):
            check_output_kind(outputs, kind)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_are_float32_unless_autocast_chose_another_precision(precision):
    assert to_logits(LOGITS.to(precision), "logits").dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert to_logits(LOGITS.bfloat16(), "logits").dtype == torch.bfloat16


def test_sigmoids_that_are_saturated_stay_finite():
    logits = to_logits(torch.tensor([[0.0, 1.0]]), "sigmoids")
    assert torch.isfinite(logits).all()
    assert logits[0, 1] > logits[0, 0]


def test_the_number_of_classes_that_the_user_set__chooses_the_output():
    features, logits = torch.zeros(2, 8), LOGITS
    assert find_output_key((features, logits)) == "0"
    assert find_output_key((features, logits), 3) == "1"
    assert find_output_key({"features": features, "scores": logits}, 3) == "scores"


def test_a_key_of_a_mapping_may_be_a_number():
    assert select_output({1: LOGITS}, "1") is LOGITS


def test_probabilities__must_sum_to_1():
    check_output_kind(LOGITS.softmax(1), "probabilities")
    with pytest.raises(TeacherError, match="returns rows with sums from"):
        check_output_kind(LOGITS.sigmoid(), "probabilities")


@pytest.mark.parametrize(
    "fail",
    [
        lambda: find_output_key({"a": LOGITS, "b": LOGITS}, role="student"),
        lambda: select_output({"a": LOGITS}, "c", role="student"),
        lambda: find_output_kind(LOGITS / LOGITS.norm(dim=1, keepdim=True), role="student"),
        lambda: find_output_kind(torch.zeros(2, 3, 4, 4), role="student"),
        lambda: find_output_kind(torch.tensor([1, 2]), role="student"),
    ],
)
def test_messages_about_a_student__name_no_setting_of_the_teacher(fail):
    with pytest.raises(TeacherError) as raised:
        fail()
    assert "teacher" not in str(raised.value).lower()
