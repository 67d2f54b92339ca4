import dataclasses
import json
import math

import pytest
import torch

from dfkd_core.common.digests import canonical_json
from dfkd_core.common.pixels import load_batch
from dfkd_core.common.rows import ShardedRows
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import DataError
from dfkd_core.evaluation.comparison import EvaluationConfig, evaluate
from dfkd_core.evaluation.latency import measure_latency
from dfkd_core.evaluation.metrics import confusion_matrix, expected_calibration_error, mean_kl
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.models.teacher import Teacher
from dfkd_core.progress import Progress

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=4, mean=(0.3,), std=(0.3,), layer="fc1")


def make_data(num_images=20):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 1, 32, 32), generator=generator, dtype=torch.uint8)
    return LabelledImages(images=images, labels=torch.arange(num_images) % 3, class_names=tuple("abcd"))


def make_models():
    teacher = Teacher(build_classifier(CARD, seed=0))
    return build_classifier(dataclasses.replace(CARD, network="lenet5_half"), seed=1), teacher


def test_calibration_error_by_hand():
    # Confidences 0.9 (right), 0.9 (wrong), 0.6 (right): bins 14 and 9 of 15.
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]).log()
    expected = 2 / 3 * abs(0.5 - 0.9) + 1 / 3 * abs(1 - 0.6)
    assert expected_calibration_error(logits, torch.tensor([0, 1, 1])) == pytest.approx(expected, rel=1e-6)


def test_calibration_error_agrees_with_plain_code():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 5, generator=generator), torch.randint(0, 5, (200,), generator=generator)
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            expected += (inside.double().mean() * (accuracy - confidence[inside].mean()).abs()).item()
    assert expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_calibration_error_of_certainty_is_the_error_rate():
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0], [0.0, 1e4], [0.0, 1e4]])
    assert expected_calibration_error(logits, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.25)


def test_confusion_counts_rows_as_truth():
    logits = torch.eye(3)[[0, 1, 1, 2]]
    expected = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert confusion_matrix(logits, torch.tensor([0, 0, 1, 2])).tolist() == expected


def test_kl_is_the_formula_and_of_teacher_and_student():
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert mean_kl(teacher, student) == pytest.approx(expected, rel=1e-6)
    assert mean_kl(teacher, teacher + 3) == pytest.approx(0, abs=1e-7)


def test_a_report_agrees_with_plain_code_in_any_batch_size():
    (student, teacher), data = make_models(), make_data()
    reports: list[Progress] = []
    report = evaluate(student, teacher, data=data, config=EvaluationConfig(batch_size=7), on_progress=reports.append)
    images = load_batch(data.images, torch.arange(20))
    with torch.no_grad():
        student_logits, teacher_logits = student.eval()(images), teacher(images)
    right = student_logits.argmax(1) == data.labels
    assert report.student.scores.accuracy == right.double().mean().item()
    assert report.teacher.scores.accuracy == (teacher_logits.argmax(1) == data.labels).double().mean().item()
    assert report.agreement == (student_logits.argmax(1) == teacher_logits.argmax(1)).double().mean().item()
    assert report.kl == pytest.approx(mean_kl(teacher_logits, student_logits), rel=1e-4)
    per_class = [right[data.labels == label].double().mean().item() for label in range(3)]
    assert report.student.scores.per_class_accuracy == (*per_class, None)
    confusion: tuple[tuple[int, ...], ...] = report.student.scores.confusion
    assert sum(sum(row) for row in confusion) == report.num_images == 20
    assert not report.proxy
    assert [report.done for report in reports] == [7, 14, 20]


def test_sizes_are_those_of_the_network_and_of_its_file(tmp_path):
    student, teacher = make_models()
    report = evaluate(student, teacher, data=make_data())
    save_model(tmp_path, student)
    assert report.student.size_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert report.student.num_parameters == sum(p.numel() for p in student.parameters())
    assert report.teacher.num_parameters == sum(p.numel() for p in teacher.classifier.parameters())
    assert sum(p.numel() for p in student.parameters()) < report.teacher.num_parameters


def test_metrics_have_their_names_and_the_same_numbers_twice():
    student, teacher = make_models()
    first, again = (evaluate(student, teacher, data=make_data()) for _ in range(2))
    alone = {"accuracy", "ece", "num_parameters", "size_bytes"}
    assert first.to_metrics().keys() == {"teacher", "student"}
    assert first.to_metrics()["teacher"].keys() == alone
    assert first.to_metrics()["student"].keys() == alone | {"agreement", "kl"}
    assert first == again
    assert json.loads(canonical_json(first))["student"]["scores"]["confusion"][3] == [0, 0, 0, 0]


def test_a_student_equal_to_its_teacher_agrees_fully():
    _, teacher = make_models()
    report = evaluate(build_classifier(CARD, seed=0), teacher, data=make_data())
    assert report.agreement == 1
    assert report.kl == pytest.approx(0, abs=1e-9)
    assert report.student == report.teacher


def test_without_labels_agreement_is_a_proxy_and_says_so():
    student, teacher = make_models()
    report, real = (
        evaluate(student, teacher, **on) for on in ({"held_out": make_data().images}, {"data": make_data()})
    )
    assert report.proxy
    assert report.teacher.scores is report.student.scores is None
    given = torch.bincount(teacher(make_data().images / 255).argmax(1))
    assert report.to_metrics()["proxy"] == {
        "agreement": real.agreement,
        "kl": real.kl,
        "num_classes": int(given.count_nonzero()),
        "largest_class": given.max().item() / len(make_data()),
    }
    assert report.to_metrics()["student"].keys() == {"num_parameters", "size_bytes"}


def test_evaluation_changes_no_batch_norm_buffer():
    student = build_classifier(dataclasses.replace(CARD, network="lenet5_half_bn"), seed=1).train()
    before = {name: buffer.clone() for name, buffer in student.network.named_buffers()}
    evaluate(student, make_models()[1], data=make_data())
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.network.named_buffers())


def test_latency_is_a_positive_number_per_batch_size():
    latency = measure_latency(make_models()[0], batch_sizes=(1, 3), num_runs=3)
    assert latency.keys() == {"batch_1_ms", "batch_3_ms"}
    assert all(milliseconds > 0 for milliseconds in latency.values())


def test_what_cannot_be_evaluated_is_named():
    (student, teacher), data = make_models(), make_data()
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(student, teacher)
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(student, teacher, held_out=data.images[:0])
    with pytest.raises(DataError, match=r"\(1, 28, 28\).*\(1, 32, 32\)"):
        evaluate(student, teacher, held_out=data.images[..., 2:-2, 2:-2])
    wrong = LabelledImages(images=data.images, labels=data.labels + 2, class_names=data.class_names)
    with pytest.raises(DataError, match=r"from 2 to 4.*0 to 3"):
        evaluate(student, teacher, data=wrong)


def test_passes_that_memory_limits_and_images_in_files_give_the_same_figures(limit_passes):
    student, teacher = make_models()
    images = make_data(24).images
    whole = evaluate(student, teacher, held_out=images).to_metrics()
    limit_passes(teacher, 5)
    parts = evaluate(student, teacher, held_out=ShardedRows(images.split(10))).to_metrics()
    assert parts["proxy"]["agreement"] == whole["proxy"]["agreement"]
    assert parts["proxy"]["kl"] == pytest.approx(whole["proxy"]["kl"], rel=1e-4)
