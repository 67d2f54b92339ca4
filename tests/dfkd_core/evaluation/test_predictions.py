from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dfkd_core.common.digests import file_sha256
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import DataError
from dfkd_core.evaluation.comparison import EvaluationConfig, EvaluationReport, evaluate
from dfkd_core.evaluation.predictions import predict_images, read_predictions, write_predictions
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1")
IMAGES = torch.randint(0, 256, (23, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(23) % 10


def report(images: torch.Tensor = IMAGES, labels: torch.Tensor | None = LABELS, **config: int) -> EvaluationReport:
    teacher, student = Teacher(build_classifier(CARD, seed=0)), build_classifier(CARD, seed=1)
    data = None if labels is None else LabelledImages(images, labels, tuple("0123456789"))
    return evaluate(student, teacher, data=data, held_out=images, config=EvaluationConfig(**config))


def test_predictions__explain_the_figures() -> None:
    found = report()
    student, truth = torch.tensor(found.predictions.student), torch.tensor(found.predictions.truth)
    assert (student == truth).double().mean() == found.student.scores.accuracy
    assert (student == torch.tensor(found.predictions.teacher)).double().mean() == found.agreement
    assert found.predictions.labels == tuple(LABELS.tolist())
    proxy = report(labels=None).predictions
    assert proxy.labels is None
    assert proxy.truth == found.predictions.teacher


def test_confidences__are_the_largest_probabilities_as_they_are_stored() -> None:
    found = report().predictions
    with torch.no_grad():
        logits = [build_classifier(CARD, seed=seed).eval()(IMAGES / 255) for seed in (1, 0)]
    for sure, expected in zip((found.student_confidence, found.teacher_confidence), logits):
        torch.testing.assert_close(torch.tensor(sure), expected.softmax(1).amax(1), rtol=1e-4, atol=1e-5)


def test_read_predictions__of_an_earlier_version_has_no_confidences(tmp_path: Path) -> None:
    save_file({"student": CLASSES, "teacher": CLASSES.clone()}, str(tmp_path / "a"), metadata=DIGEST)
    found = read_predictions(tmp_path / "a")
    assert found.student_confidence == found.teacher_confidence == ()


def test_digest__is_of_images_labels_and_their_order_alone() -> None:
    digest = report().predictions.images_sha256
    assert report(batch_size=5).predictions.images_sha256 == digest
    classifier = build_classifier(CARD, seed=2)
    assert predict_images(classifier, IMAGES, batch_size=7)[1].of(IMAGES, LABELS) == digest
    changed = IMAGES.clone()
    changed[22, 0, 31, 31] ^= 1
    others = [
        report(changed),
        report(labels=LABELS.flip(0)),
        report(labels=None),
        report(IMAGES.flip(0)),
        report(IMAGES[:22], LABELS[:22]),
    ]
    assert len({digest, *(other.predictions.images_sha256 for other in others)}) == 6


def test_predict_images__returns_the_classifiers_logits() -> None:
    classifier = build_classifier(CARD, seed=2).eval()
    with torch.no_grad():
        expected = classifier(IMAGES / 255)
    torch.testing.assert_close(predict_images(classifier, IMAGES, batch_size=10)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, None])
def test_predictions__are_stored_in_the_same_bytes(tmp_path: Path, labels: torch.Tensor | None) -> None:
    made = report(labels=labels).predictions
    for name in ("a", "b"):
        write_predictions(tmp_path / name, made)
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")
    assert read_predictions(tmp_path / "a") == made


DIGEST = {"images_sha256": "0" * 64}
CLASSES = torch.zeros(3, dtype=torch.int32)
SURE = torch.ones(3)
ALL = {"student": CLASSES, "teacher": CLASSES, "student_confidence": SURE, "teacher_confidence": SURE}


@pytest.mark.parametrize(
    ("tensors", "metadata", "fault"),
    [
        ({"student": CLASSES}, DIGEST, "it has the tensors student"),
        ({"student": CLASSES, "teacher": CLASSES, "more": CLASSES}, DIGEST, "it has the tensors more, student"),
        ({"student": CLASSES, "teacher": CLASSES[:2]}, DIGEST, "one class per image"),
        ({"student": CLASSES[None], "teacher": CLASSES[None]}, DIGEST, "one class per image"),
        ({"student": CLASSES.float(), "teacher": CLASSES.float()}, DIGEST, "are not classes"),
        ({"student": CLASSES[:0], "teacher": CLASSES[:0]}, DIGEST, "it has no images"),
        (
            {"student": CLASSES, "teacher": CLASSES, "student_confidence": SURE},
            DIGEST,
            "it has the tensors student, stu",
        ),
        (ALL | {"teacher_confidence": SURE[:2]}, DIGEST, "one class per image"),
        (ALL | {"teacher_confidence": 2 * SURE}, DIGEST, "are not from 0 to 1"),
        (ALL | {"teacher_confidence": SURE * torch.nan}, DIGEST, "are not from 0 to 1"),
        (ALL | {"teacher_confidence": SURE.double()}, DIGEST, "are not from 0 to 1"),
        ({"student": CLASSES, "teacher": CLASSES}, {}, "no digest"),
        ({"student": CLASSES, "teacher": CLASSES}, {"images_sha256": "../x"}, "no digest"),
    ],
)
def test_read_predictions__refuses_other_files(tmp_path: Path, tensors, metadata, fault: str) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, str(tmp_path / "a"), metadata=metadata)
    with pytest.raises(DataError, match=fault):
        read_predictions(tmp_path / "a")


def test_read_predictions__of_half_a_file_and_of_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There are no predictions: .*dfkd run"):
        read_predictions(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"1234567890")
    with pytest.raises(DataError, match=r"is damaged: .*dfkd run"):
        read_predictions(tmp_path / "a")
