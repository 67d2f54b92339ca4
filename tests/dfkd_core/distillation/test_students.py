"""Students of every kind: what passes the check is trained to the end; the rest is refused before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.distillation.students import build_student, check_student, drawn_student, student_card
from dfkd_core.errors import ConfigError
from dfkd_core.models.built_in import half_as_wide
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import load_model, save_model
from dfkd_core.models.teacher import Teacher

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
CARD = ModelCard(
    network="students_zoo:Plain", in_channels=1, image_size=16, num_classes=10, mean=(0.3,), std=(0.4,), layer=""
)


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fixtures importable, as a user's own package is."""
    monkeypatch.syspath_prepend(str(FIXTURES))


def teacher_of(network: str = "students_zoo:Plain", **arguments: int) -> Teacher:
    return Teacher(build_classifier(dataclasses.replace(CARD, network=network, arguments=arguments), seed=0))


def images_of(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "outputs", "key"),
    [
        ("Plain", "logits", ""),
        ("Probabilities", "probabilities", ""),
        ("LogProbabilities", "log_probabilities", ""),
        ("Named", "logits", "logits"),
        ("Auxiliary", "logits", ""),
        ("Doubles", "logits", ""),
        ("PartlyFrozen", "logits", ""),
        ("Normed", "logits", ""),
        ("Sigmoids", "sigmoids", ""),
    ],
)
def test_a_student_that_passes_the_check__is_trained_stored_and_read_back(
    name: str, outputs: str, key: str, tmp_path: Path
) -> None:
    teacher, images = teacher_of(), images_of(33)
    config = DistillationConfig(student=f"students_zoo:{name}", epochs=1, batch_size=16, start="random")
    check_student(teacher.card, config)
    student = distill_images(teacher, images, teacher.label(images / 255), config, seed=0).student
    assert (student.card.outputs, student.card.output_key) == (outputs, key)
    save_model(tmp_path, student)
    read = load_model(tmp_path, trusted_factories=[config.student])
    with torch.no_grad():
        torch.testing.assert_close(read(images / 255), student(images / 255))
        sums = student(images / 255).softmax(1).sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("is_zero", [False, True])
@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("main aux", "0"),
        ("aux main", "1"),
        ("features main", "1"),
        ("aux sum", "1"),
        ("mapping aux main", "main"),
        ("main", ""),
        ("sum", ""),
    ],
)
def test_the_head_of_evaluation__is_trained_wherever_it_is_in_training(order: str, key: str, is_zero: bool) -> None:
    arguments = {"order": order, "is_zero": is_zero}
    config = DistillationConfig(student="students_zoo:TwoHeads", student_arguments=arguments)
    check_student(teacher_of().card, config)
    student = drawn_student(teacher_of().card, config, seed=0).train()
    torch.autograd.backward(student(torch.rand(2, 1, 16, 16)).square().sum())
    head = student.network.get_parameter("fc.bias").grad
    assert student.training_key == key
    assert is_zero or (head is not None and bool(head.any()))


def test_the_head_of_evaluation__is_found_next_to_a_list() -> None:
    config = DistillationConfig(student="students_zoo:ListOfHeads", student_arguments={"order": "main"})
    assert drawn_student(teacher_of().card, config, seed=0).training_key == "1"


@pytest.mark.parametrize("order", ["aux", "mapping aux", "aux features"])
def test_a_student_without_the_head_of_evaluation_in_training__is_refused(order: str) -> None:
    config = DistillationConfig(student="students_zoo:TwoHeads", student_arguments={"order": order})
    message = (
        r"TwoHeads returns a .* in training mode.*no gradient of it reaches fc\.weight.*under the key logits.*resnet18"
    )
    with pytest.raises(ConfigError, match=message):
        check_student(teacher_of().card, config)


def test_a_student_whose_head_is_unclear__is_refused() -> None:
    config = DistillationConfig(student="students_zoo:TwoHeads", student_arguments={"order": "mapping main sum"})
    with pytest.raises(ConfigError, match="several parts of it reach"):
        check_student(teacher_of().card, config)


def test_a_message_about_the_outputs_of_a_student__is_whole_and_names_no_setting_of_the_teacher() -> None:
    with pytest.raises(ConfigError, match=r"students_zoo:ManyParts.*part_39, and it is unclear.*key logits") as raised:
        check_student(teacher_of().card, DistillationConfig(student="students_zoo:ManyParts"))
    assert "teacher.source" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_check_student__takes_layers_that_learn_their_sizes_from_an_image() -> None:
    check_student(teacher_of().card, DistillationConfig(student="students_zoo:Lazy"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Complex", "its weight filter is torch.complex64"),
        ("Frozen", "none of its weights is trained"),
        ("Detached", "no gradient reaches its weights"),
        ("Overwriting", "a training step on 4 images fails"),
        ("TwoInputs", "missing 1 required positional argument"),
        ("NeedsLabels", "targets should be passed"),
        ("Leaving", r"calls sys.exit\(3\), which ends the program"),
        ("Exploding", "NaN or Inf after a training step"),
        ("Unstorable", "cannot be stored and built again"),
        ("Maps", "returns shape"),
    ],
)
def test_a_student_that_cannot_be_trained__is_refused_in_one_sentence_with_students_that_fit(
    name: str, message: str
) -> None:
    config = DistillationConfig(student=f"students_zoo:{name}")
    with pytest.raises(ConfigError, match=rf"students_zoo:{name} .*{message}.*fit the teacher.*: .*resnet18_quarter"):
        check_student(teacher_of().card, config)


@pytest.mark.parametrize("name", ["students_zoo:Leaving", "students_zoo:Leaving@0.5"])
def test_a_student_that_ends_the_program__is_refused(name: str) -> None:
    config = DistillationConfig(student=name, student_arguments={"always": True})
    with pytest.raises(ConfigError, match=r"its code calls sys.exit\(3\)"):
        check_student(teacher_of().card, config)


def test_check_student__refuses_one_that_loses_the_dimension_of_one_image() -> None:
    with pytest.raises(ConfigError, match=r"answers 1 image with shape \(10,\); for the teacher's 10 classes"):
        check_student(teacher_of().card, DistillationConfig(student="students_zoo:Squeezed"))


def test_check_student__changes_no_global_state() -> None:
    state = torch.get_rng_state()
    check_student(teacher_of().card, DistillationConfig(student="resnet18_eighth"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("network", "student"),
    [
        ("lenet5", "lenet5_half"),
        ("lenet5_bn", "lenet5_half_bn"),
        ("resnet18@0.03", "resnet18@0.015"),
        ("students_zoo:Plain", "students_zoo:Plain@0.5"),
    ],
)
def test_the_default_student__is_the_teachers_network_with_half_the_widths(network: str, student: str) -> None:
    card = dataclasses.replace(CARD, network=network, image_size=32)
    teacher = Teacher(build_classifier(card, seed=0))
    images = torch.randint(0, 256, (40, 1, 32, 32), dtype=torch.uint8)
    config = DistillationConfig(epochs=1)
    check_student(teacher.card, config)
    result = distill_images(teacher, images, teacher.label(images / 255), config, seed=0)
    assert (result.student.card.network, result.start, result.notes) == (student, "pruned", ())
    sizes = [sum(weight.numel() for weight in net.parameters()) for net in (result.student, teacher.network)]
    assert sizes[0] < 0.8 * sizes[1]


@pytest.mark.parametrize(
    ("network", "half"),
    [
        ("resnet18", "resnet18_half"),
        ("resnet18_quarter", "resnet18_quarter@0.5"),
        ("lenet5@0.5", "lenet5@0.25"),
        ("my_nets:make", "my_nets:make@0.5"),
    ],
)
def test_half_as_wide__has_the_papers_name_or_a_width_multiple(network: str, half: str) -> None:
    assert half_as_wide(network) == half


def test_a_student_that_answers_in_another_form__is_still_a_copy() -> None:
    teacher, images = teacher_of(), images_of(20)
    student = build_student(teacher, images, DistillationConfig(student="students_zoo:Named"), seed=0)
    assert (student.start, student.classifier.card.output_key) == ("pruned", "logits")
    torch.testing.assert_close(student.classifier.eval()(images / 255), teacher.label(images / 255))


def test_the_default_student__keeps_the_arguments_of_the_teacher() -> None:
    teacher = teacher_of(width=12)
    card = student_card(teacher.card, DistillationConfig())
    assert card.arguments == {"width": 12}
    assert build_classifier(card, seed=0).network.conv.weight.shape == (6, 1, 3, 3)


def test_the_default_student__is_built_in_if_the_teacher_cannot_be_built_thinner() -> None:
    teacher, images = teacher_of("students_zoo:Probabilities"), images_of(20)
    teacher.classifier.card = dataclasses.replace(teacher.card, network="in memory")
    result = distill_images(teacher, images, teacher.label(images / 255), DistillationConfig(epochs=1), seed=0)
    assert (result.student.card.network, result.start) == ("resnet18_quarter", "random")
    (note,) = result.notes
    assert "not as a thinner copy of the teacher" in note
    assert "distillation.start: pruned" in note


def test_a_start_that_could_not_be_a_copy__is_noted_again_after_a_resumption(tmp_path: Path) -> None:
    teacher, images = teacher_of(), images_of(20)
    config = DistillationConfig(student="students_zoo:Normed", epochs=2, checkpoint_every_epochs=1)
    results = [
        distill_images(teacher, images, teacher.label(images / 255), config, seed=0, checkpoint=tmp_path / "c")
        for _ in range(2)
    ]
    assert results[0].notes == results[1].notes
    assert results[0].start == results[1].start == "random"
    assert "the teacher has no norm" in results[0].notes[0]


def test_layers_that_are_not_called__are_left_out_with_a_note_and_skipped_ones_do_not_count() -> None:
    teacher, images = teacher_of("students_zoo:Blocks"), images_of(64)
    config = DistillationConfig(student="students_zoo:Blocks", epochs=3, batch_size=8, start="random")
    torch.manual_seed(0)
    result = distill_images(teacher, images, teacher.label(images / 255), config, seed=0)
    (note,) = result.notes
    assert note.endswith(": stages, skipped, direct")


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (3, 2), (5, 1)])
def test_a_batch_of_one__does_not_stop_a_student_with_batch_norm(count: int, batch_size: int) -> None:
    teacher, images = teacher_of(), images_of(count)
    config = DistillationConfig(student="students_zoo:Normed", epochs=2, batch_size=batch_size, start="random")
    student = distill_images(teacher, images, teacher.label(images / 255), config, seed=0).student
    assert not student.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())
