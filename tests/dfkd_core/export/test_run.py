import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx as onnx_package
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from dfkd_core.common.digests import file_sha256
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import ConfigError, ExportError
from dfkd_core.export import making
from dfkd_core.export.fidelity import TOLERANCE, check_fidelity, measure_fidelity, predict_all
from dfkd_core.export.forms import ONNX_SETTINGS, capture, graph_of, read_onnx, read_pt2, write_pt2
from dfkd_core.export.report import ExportReport
from dfkd_core.export.run import choose_images, default_formats, export_model, probe_images
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier, describe
from dfkd_core.models.storage import load_model, model_digest, save_model
from dfkd_core.teachers.loading import bring_module
from dfkd_core.teachers.source import SourceConfig

ROOT = Path(__file__).resolve().parents[3]


LAYERS = {"lenet5": "fc1", "lenet5_bn": "fc1", "resnet18_eighth": "pool"}


def make_student(network="lenet5", channels=1, seed=0):
    card = ModelCard(
        network=network, in_channels=channels, image_size=32, num_classes=10, mean=(0.3, 0.2, 0.1)[:channels],
        std=(0.25, 0.2, 0.4)[:channels], layer=LAYERS[network], class_names=tuple("abcdefghij"),
    )  # fmt: skip
    return build_classifier(card, seed=seed).eval()


def random_images(count, channels=1):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, 32, 32), generator=generator, dtype=torch.uint8)


def balance(student):
    """Shift the logits to a mean of zero each, as random weights answer nearly every image with one class."""
    with torch.no_grad():
        student.network.get_parameter("fc2.bias").sub_(student(probe_images(student.card.image_shape) / 255).mean(0))
    return student


def digests(folder):
    return {path.name: file_sha256(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        ("lenet5", 1),
        ("lenet5_bn", 3),
        pytest.param("resnet18_eighth", 1, marks=pytest.mark.slow),
        ("resnet18_eighth", 3),
    ],
)
def test_every_form_answers_as_the_student_for_any_batch(tmp_path, network, channels):
    student = make_student(network, channels)
    out = tmp_path / "new" / "out"
    report = export_model(student, out, formats=("safetensors", "pt2", "onnx"), images=random_images(20, channels))
    assert [form.input for form in report.forms] == ["unit_range", "normalised", "normalised"]
    about = json.loads((out / "preprocessing.json").read_text())
    mean, std = (torch.tensor(about[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    loaded, pt2, onnx = load_model(out), read_pt2(out / "model.pt2"), read_onnx(out / "model.onnx")
    for count in (1, 2, 33):
        images = random_images(count, channels) / 255
        with torch.no_grad():
            expected = student(images)
            for logits in (loaded(images), pt2((images - mean) / std), onnx((images - mean) / std)):
                torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_baked_graphs_take_images(tmp_path):
    student = make_student("lenet5_bn", 3)
    report = export_model(
        student, tmp_path / "out", formats=("pt2", "onnx"), images=random_images(9, 3), bake_preprocessing=True
    )
    assert {form.input for form in report.forms} == {"unit_range"}
    images = random_images(5, 3) / 255
    with torch.no_grad():
        for read, name in ((read_pt2, "model.pt2"), (read_onnx, "model.onnx")):
            torch.testing.assert_close(read(tmp_path / "out" / name)(images), student(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bake", [False, True])
def test_a_network_that_calls_view_takes_images_in_any_layout(tmp_path, bake):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8 * 64, 10)

        def forward(self, images):
            return self.fc(self.conv(images).relu().view(len(images), -1))

    torch.manual_seed(0)
    network = Viewing()
    student = Classifier(network, dataclasses.replace(make_student(channels=3).card, network="in memory", layer=""))
    describe(student)
    assert not student.card.channels_last
    # Classes that rounding does not change.
    with torch.no_grad():
        network.fc.weight *= 10
    out = tmp_path / "out"
    export_model(
        student.eval(), out, formats=("pt2", "onnx"), images=random_images(20, 3), bake_preprocessing=bake,
        calibration=random_images(30, 3), min_agreement=0.7,
    )  # fmt: skip
    images = random_images(5, 3) / 255
    with torch.no_grad():
        expected = student(images)
        given = images if bake else (images - student.mean) / student.std
        for layout in (torch.contiguous_format, torch.channels_last):
            for read, name in ((read_pt2, "model.pt2"), (read_onnx, "model.onnx")):
                logits = read(out / name)(given.contiguous(memory_format=layout))
                torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_what_a_classifier_does_after_its_network_is_exported_too(tmp_path):
    class Scaled(Classifier):
        def forward(self, images):
            return 3 * super().forward(images)

    plain = make_student()
    student = Scaled(plain.network, plain.card).eval()
    export_model(student, tmp_path / "out", formats=("pt2",), images=random_images(9))
    images = random_images(4) / 255
    with torch.no_grad():
        logits = read_pt2(tmp_path / "out" / "model.pt2")((images - student.mean) / student.std)
        torch.testing.assert_close(logits, 3 * plain(images), atol=1e-5, rtol=1e-4)


def test_the_student_stays_as_it_is(tmp_path):
    student = make_student("lenet5_bn")
    student.requires_grad_(False)
    before = model_digest(student)
    export_model(student, tmp_path / "out", formats=("pt2",), images=random_images(9), calibration=random_images(9),
                 min_agreement=0)  # fmt: skip
    assert model_digest(student) == before
    assert student.mean.item() == pytest.approx(0.3)
    assert not any(parameter.requires_grad for parameter in student.parameters())


@dataclass(frozen=True)
class Export:
    """A student with all its forms."""

    student: Classifier
    options: dict[str, Any]
    """What it was exported with."""
    folder: Path
    report: ExportReport


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Every form of a student with BatchNorm, int8 ones included, scored on labels that it gives itself."""
    student = balance(make_student("lenet5_bn"))
    checked, calibration = choose_images(probe_images((1, 32, 32)))
    with torch.no_grad():
        labels = student(checked / 255).argmax(1)
    assert len(labels.unique()) == 10
    options: dict[str, Any] = {
        "formats": ("safetensors", "pt2", "onnx"),
        "images": checked,
        "calibration": calibration,
        "labelled": LabelledImages(checked, labels, student.card.class_names),
    }
    folder = tmp_path_factory.mktemp("everything") / "out"
    return Export(student, options, folder, export_model(student, folder, **options))


def test_the_same_student_gives_the_same_bytes_without_paths(everything, tmp_path):
    export_model(everything.student, tmp_path / "second", **everything.options)
    first = digests(everything.folder)
    assert first == digests(tmp_path / "second")
    assert sorted(first) == [
        "config.json", "export.json", "model.onnx", "model.pt2", "model.safetensors", "model_int8.onnx",
        "model_int8.pt2", "preprocessing.json",
    ]  # fmt: skip
    for path in everything.folder.iterdir():
        content, paths = path.read_bytes(), (str(ROOT), str(everything.folder.parent), sys.prefix)
        assert not [text for text in paths if text.encode() in content], path.name
    report = json.loads((everything.folder / "export.json").read_text())
    assert report["sha256"] == {name: digest for name, digest in first.items() if name != "export.json"}


def test_another_students_file_does_not_pass_the_check(tmp_path):
    student, other = make_student(seed=0), make_student(seed=1)
    write_pt2(capture(graph_of(other, normalises=True), (1, 32, 32)), tmp_path / "model.pt2")
    images = random_images(30)
    fidelity = measure_fidelity(predict_all(read_pt2(tmp_path / "model.pt2"), images), predict_all(student, images))
    with pytest.raises(ExportError, match="is not equivalent to the student"):
        check_fidelity(fidelity, name="model.pt2", max_relative_difference=TOLERANCE)


def test_a_file_with_a_changed_weight_is_not_kept(tmp_path, monkeypatch):
    save = torch.export.save

    def save_corrupt(program, path):
        program.state_dict["model.fc1.weight"].data[3] += 0.01
        save(program, path)

    out = tmp_path / "out"
    export_model(make_student(), out, formats=("safetensors",), images=random_images(9))
    before = digests(out)
    monkeypatch.setattr(torch.export, "save", save_corrupt)
    with pytest.raises(ExportError, match=r"model\.pt2 is not equivalent to the student.*It was not kept"):
        export_model(make_student(), out, formats=("pt2",), images=random_images(9))
    assert digests(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    report = export_model(make_student(), out, formats=("safetensors", "pt2"), images=random_images(9))
    assert [form.file for form in report.forms] == ["model.safetensors"]
    assert [failure.file for failure in report.failures] == ["model.pt2"]
    assert not (out / "model.pt2").exists()


def test_int8__is_smaller_near_the_student_and_scored(everything):
    report, num_checked = everything.report, len(everything.options["images"])
    sizes = {form.file: form.size_bytes for form in report.forms}
    assert sizes["model_int8.pt2"] < 0.6 * sizes["model.pt2"]
    assert sizes["model_int8.onnx"] < 0.4 * sizes["model.onnx"]
    assert report.student_accuracy == 1
    for form in report.forms:
        int8 = form.precision == "int8"
        assert form.accuracy == (form.fidelity.agreement if int8 else None)
        assert (form.fidelity.relative_difference > TOLERANCE) == int8
        assert form.fidelity.agreement >= 0.9
        settings = [*ONNX_SETTINGS[1:]] if form.file == "model_int8.onnx" else []
        assert list(form.other_settings) == settings
        assert all(fidelity.agreement >= 0.9 for fidelity in form.other_settings.values())
    # The same integers: whatever kernel a processor has for them, the classes are those of the pt2 twin.
    int8 = {form.file: form.fidelity for form in report.forms if form.precision == "int8"}
    twin, onnx = int8["model_int8.pt2"], int8["model_int8.onnx"]
    assert abs(onnx.agreement - twin.agreement) <= 1 / num_checked
    assert onnx.relative_difference == pytest.approx(twin.relative_difference, rel=1e-3)
    assert json.loads((everything.folder / "export.json").read_text())["processor"] == report.processor


def test_int8_onnx__weights_are_the_int8_ones_with_128_added(everything):
    tensors = torch.export.load(everything.folder / "model_int8.pt2").state_dict.values()
    model = onnx_package.load(everything.folder / "model_int8.onnx")
    stored = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in model.graph.initializer}
    weights = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            weight, _, zero_point = (stored[name] for name in node.input)
            assert weight.dtype == zero_point.dtype == torch.uint8
            assert zero_point.unique().tolist() == [128]
            weights[tuple(weight.shape)] = weight.short() - 128
    int8 = [tensor for tensor in tensors if tensor.dtype == torch.int8]
    assert len(int8) == len(weights) == 5
    for tensor in int8:
        assert torch.equal(weights[tuple(tensor.shape)], tensor.short())


def test_int8__calibrated_on_something_else_is_left_out_with_the_reason(tmp_path):
    black = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)
    student, out = balance(make_student()), tmp_path / "out"
    report = export_model(student, out, formats=("pt2",), images=probe_images((1, 32, 32)), calibration=black)
    assert [form.file for form in report.forms] == ["model.pt2"]
    (failure,) = report.failures
    assert failure.file == "model_int8.pt2"
    assert re.search(r"model_int8\.pt2 predicts the student's class for .*, and at least 90\.00% is", failure.reason)
    assert "the rounding is too coarse" in failure.reason
    assert sorted(digests(out)) == ["export.json", "model.pt2", "preprocessing.json"]
    assert json.loads((out / "export.json").read_text())["failures"] == [dataclasses.asdict(failure)]


def test_a_form_that_cannot_be_made_leaves_the_others(tmp_path):
    class Decomposing(nn.Module):
        """ONNX has no operator for eigenvalues; no name from which another process could build it."""

        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, stride=8), nn.Linear(4, 10)

        def forward(self, images):
            found = self.head(self.conv(images).mean((2, 3)))
            return found + 0 * torch.linalg.eigh(found.T @ found)[0]

    student = Classifier(Decomposing(), dataclasses.replace(make_student().card, network="in memory")).eval()
    report = export_model(
        student, tmp_path / "out", formats=("safetensors", "pt2", "onnx"), images=random_images(9),
        calibration=random_images(9), min_agreement=0,
    )  # fmt: skip
    assert [form.file for form in report.forms] == ["model.pt2", "model_int8.pt2"]
    assert [failure.file for failure in report.failures] == ["model.safetensors", "model.onnx", "model_int8.onnx"]
    assert all(failure.file in failure.reason for failure in report.failures)
    assert set(report.sha256) == {"model.pt2", "model_int8.pt2", "preprocessing.json"}


def test_a_network_in_memory__is_exported_as_a_program_and_the_folder_names_the_way(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    student = bring_module(network, SourceConfig(in_channels=1, image_size=32)).classifier
    report = export_model(student, tmp_path / "out", formats=("safetensors", "pt2"), images=random_images(12))
    assert [form.file for form in report.forms] == ["model.pt2"]
    assert "network is 'in memory'" in report.failures[0].reason
    with pytest.raises(ConfigError, match=r"bring_teacher\(SourceConfig\(model=.*formats=\('pt2', 'onnx'\)\)"):
        save_model(tmp_path, student)
    assert not (tmp_path / "config.json").exists()


def test_int8__needs_a_graph(tmp_path):
    with pytest.raises(ConfigError, match="--format pt2"):
        export_model(
            make_student(), tmp_path / "out", formats=("safetensors",), images=random_images(2),
            calibration=random_images(2),
        )  # fmt: skip


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_says_how_to_install_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert default_formats() == ("safetensors", "pt2")
    with pytest.raises(ExportError, match=rf"package {package} cannot be imported.*pip install -e .*\[onnx\]"):
        export_model(make_student(), tmp_path / "out", formats=("onnx",), images=random_images(2))


def test_without_torchao_int8_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    report = export_model(
        make_student(), tmp_path / "out", formats=("pt2",), images=random_images(2), calibration=random_images(2)
    )
    (failure,) = report.failures
    assert re.search(r"package torchao cannot be imported.*pip install -e .*\[int8\]", failure.reason)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_of_0_to_1_is_refused(tmp_path, share):
    with pytest.raises(ConfigError, match=r"--min-agreement must be from 0 to 1, got (-0\.1|1\.1|nan)"):
        export_model(make_student(), tmp_path / "out", formats=("pt2",), images=random_images(2), min_agreement=share)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self, effect):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, stride=4), nn.Linear(4, 10)
        self.calls: Any
        self.register_buffer("calls", torch.zeros(1))
        self.effect = effect

    def forward(self, images):
        self.calls += 1
        return self.head(self.conv(images).relu().mean((2, 3))) * (1 + self.effect * self.calls)


def counting(effect):
    torch.manual_seed(0)
    return Classifier(Counting(effect), dataclasses.replace(make_student().card, network="in memory")).eval()


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_student_that_counts_its_calls_is_exported_and_stays_as_it_is(tmp_path, format):
    student = counting(effect=0)
    before = model_digest(student)
    report = export_model(student, tmp_path / "out", formats=(format,), images=random_images(20))
    assert model_digest(student) == report.student_digest == before
    assert report.forms[0].fidelity.agreement == 1


def test_a_student_whose_logits_change_from_call_to_call_is_refused(tmp_path):
    with pytest.raises(ExportError, match="logits for the same images change from call to call, by"):
        export_model(counting(effect=0.1), tmp_path / "out", formats=("pt2",), images=random_images(9))


def test_a_student_with_infinite_logits_is_refused(tmp_path):
    student = make_student()
    student.network.get_parameter("fc2.bias").data[0] = torch.inf
    with pytest.raises(ExportError, match="student's logits hold NaN or Inf for 10 of 10 images"):
        export_model(student, tmp_path / "out", formats=("pt2",), images=random_images(2))


def test_a_graph_for_one_image_at_a_time_does_not_pass_with_two_images_to_check(tmp_path, monkeypatch):
    def capture_one(graph, image_shape):
        return torch.export.export(graph, (torch.zeros(1, *image_shape),))

    monkeypatch.setattr(making, "capture", capture_one)
    with pytest.raises(ExportError, match=r"model\.pt2 fails with a batch of 2 images"):
        export_model(make_student(), tmp_path / "out", formats=("pt2",), images=random_images(1))


def test_a_network_that_looks_at_the_values_cannot_be_captured():
    class Branching(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else -images.flatten(1)

    card = make_student().card
    with pytest.raises(ExportError, match=r"cannot capture the network.*--format safetensors"):
        capture(graph_of(Classifier(Branching(), card), normalises=True), card.image_shape)


def test_out__foreign_files_are_never_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not an earlier export"):
        export_model(make_student(), tmp_path, formats=("safetensors",), images=random_images(2))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_out__an_earlier_export_is_replaced_but_not_what_was_added_or_changed(tmp_path):
    out = tmp_path / "out"
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    export_model(make_student(), out, formats=("safetensors", "pt2"), images=random_images(2))
    (out / "notes.txt").write_text("mine")
    (out / "config.json").write_text("changed")
    report = json.loads((out / "export.json").read_text())
    report["sha256"]["../outside.txt"] = file_sha256(outside)
    (out / "export.json").write_text(json.dumps(report))
    export_model(make_student(), out, formats=("pt2",), images=random_images(2))
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "export.json", "model.pt2", "notes.txt", "preprocessing.json",
    ]  # fmt: skip
    assert outside.read_text() == (out / "notes.txt").read_text() == "mine"


def test_out__files_of_others_with_the_name_of_a_form_are_not_replaced(tmp_path):
    out = tmp_path / "out"
    export_model(make_student(), out, formats=("safetensors",), images=random_images(2))
    (out / "model.pt2").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds model\.pt2, which the earlier export did not make"):
        export_model(make_student(), out, formats=("pt2",), images=random_images(2))
    (out / "config.json").write_text("changed")
    with pytest.raises(ConfigError, match=r"holds config\.json, which .* has changed since"):
        export_model(make_student(), out, formats=("safetensors",), images=random_images(2))
    assert ((out / "model.pt2").read_text(), (out / "config.json").read_text()) == ("mine", "changed")


def test_out__places_that_cannot_be_written_are_named_first(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("gone")
    for place, fault in (("file", "is not a folder"), ("file/new", "cannot be made"), ("link", "does not exist")):
        with pytest.raises(ConfigError, match=fault):
            export_model(make_student(), tmp_path / place, formats=("safetensors",), images=random_images(2))


def test_out__a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    export_model(make_student(), tmp_path / "link", formats=("safetensors",), images=random_images(2))
    assert (tmp_path / "disk" / "model.safetensors").is_file()


@pytest.mark.parametrize("num_moved", range(4))
def test_out__an_export_that_was_killed_while_its_files_were_placed_is_replaced(tmp_path, monkeypatch, num_moved):
    out, replace = tmp_path / "out", Path.replace
    moves: list[Path] = []

    def killed(path, target):
        if Path(target).parent == out and path.parent != out:
            if len(moves) == num_moved:
                raise KeyboardInterrupt
            moves.append(path)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export_model(make_student(), out, formats=("safetensors", "pt2"), images=random_images(2))
    monkeypatch.undo()
    export_model(make_student(), out, formats=("pt2",), images=random_images(2))
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "model.pt2", "preprocessing.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("content", ["{", "[]", '{"made_by": "someone", "sha256": {}}'])
def test_out__a_file_of_the_same_name_is_no_export(tmp_path, content):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(ConfigError, match="is not an earlier export"):
        export_model(make_student(), tmp_path, formats=("safetensors",), images=random_images(2))


@pytest.mark.parametrize(("available", "checked", "calibrated"), [(1000, 256, 512), (400, 200, 200), (2, 1, 1)])
def test_choose_images__checks_on_none_that_it_calibrates_on(available, checked, calibrated):
    images = torch.arange(available)
    first, second = choose_images(images)
    assert (len(first), len(second)) == (checked, calibrated)
    assert not set(first.tolist()) & set(second.tolist())
    assert torch.equal(first, choose_images(images)[0])


def test_choose_images__needs_two():
    with pytest.raises(ExportError, match="has 1 images; an export needs 2 or more"):
        choose_images(torch.zeros(1))
