import pytest
import torch

from dfkd_core.errors import ExportError
from dfkd_core.export.fidelity import Fidelity, check_fidelity, measure_fidelity, predict_all

STUDENT = torch.tensor([[1.0, 2.0], [-4.0, 0.0], [3.0, 1.0], [0.0, 0.5]])


def test_figures_are_those_of_the_definition():
    logits = STUDENT + torch.tensor([[0.0, 0.5], [0.0, 0.0], [-2.0, 0.5], [0.0, 0.0]])
    assert measure_fidelity(logits, STUDENT) == Fidelity(max_difference=2.0, relative_difference=0.5, agreement=0.75)


def test_a_student_that_answers_zero_has_figures_too():
    zeros = torch.zeros(3, 2)
    assert measure_fidelity(zeros, zeros).relative_difference == 0
    assert measure_fidelity(zeros + 1e-6, zeros).relative_difference > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    logits = STUDENT.clone()
    logits[2, 1] = value
    with pytest.raises(ExportError, match="NaN or Inf"):
        measure_fidelity(logits, STUDENT)


def test_other_classes_are_refused():
    with pytest.raises(ExportError, match=r"shape \(4, 1\), the student's \(4, 2\)"):
        measure_fidelity(STUDENT[:, :1], STUDENT)


def test_bounds_are_kept_to():
    fidelity = Fidelity(max_difference=2.0, relative_difference=0.5, agreement=0.75)
    check_fidelity(fidelity, name="model", max_relative_difference=0.5, min_agreement=0.75)
    with pytest.raises(
        ExportError, match=r"model is not equivalent to the student.*up to 2, 0\.5 of the largest.*75\.00%"
    ):
        check_fidelity(fidelity, name="model", max_relative_difference=0.49)
    with pytest.raises(ExportError, match=r"75\.00% of the images, and at least 76\.00% is required.*--min-agreement"):
        check_fidelity(fidelity, name="model", min_agreement=0.76)


def test_batches_have_different_sizes_and_cover_all_images_in_order():
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    sizes = []

    def predict(batch):
        sizes.append(len(batch))
        return batch.flatten(1) * 255

    assert torch.equal(predict_all(predict, images).flatten().round(), torch.arange(100.0))
    assert sizes == [1, 2, 7, 62, 28]


def test_a_form_with_a_fixed_batch_is_named_with_the_batch_that_fails():
    def predict(batch):
        return batch.reshape(1, -1)[:, :4]

    images = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ExportError, match=r"model\.x returns the shape \(1, 4\) for 2 images"):
        predict_all(predict, images, name="model.x")
    with pytest.raises(ExportError, match=r"model\.x fails with a batch of 2 images"):
        predict_all(lambda batch: batch.reshape(1, 4), images, name="model.x")
