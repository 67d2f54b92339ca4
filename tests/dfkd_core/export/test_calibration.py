"""Calibration images, and the quantisers of others that run on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dfkd_core.errors import ConfigError
from dfkd_core.export.calibration import ARRAY, make_calibration, write_calibration
from dfkd_core.export.forms import capture, graph_of, needing, write_onnx
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig


def make_classifier(network: str = "lenet5_bn", seed: int = 0) -> Classifier:
    card = ModelCard(
        network=network, in_channels=3, image_size=32, num_classes=10, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4),
        layer="fc1",
    )  # fmt: skip
    return build_classifier(card, seed=seed).eval()


def test_inputs__are_the_images_as_the_network_takes_them() -> None:
    classifier = make_classifier()
    made = make_calibration(classifier, 20)
    assert made.images.dtype == torch.uint8
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in ((0.3, 0.4, 0.5), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(made.inputs, (made.images / 255 - mean) / std)
    answers = classifier.network(made.inputs).argmax(1)
    assert made.class_counts == tuple(answers.bincount(minlength=10).tolist())


def test_images__depend_on_the_seed_and_not_on_their_number(tmp_path: Path) -> None:
    classifier = make_classifier()
    for name in ("one", "two"):
        write_calibration(tmp_path / name, make_calibration(classifier, 20))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert not torch.equal(make_calibration(classifier, 20, seed=1).images, make_calibration(classifier, 20).images)


def test_without_batch_norm__the_classes_are_even() -> None:
    classifier = make_classifier("lenet5")
    with torch.no_grad():
        # Each class is an answer to some draws.
        drawn = make_calibration(classifier, 40).images
        classifier.network.get_parameter("fc2.bias").sub_(classifier(drawn / 255).mean(0))
        classes = classifier(drawn / 255).argmax(1)
    unevenness = classes.bincount(minlength=10).double().std()
    chosen = torch.tensor(make_calibration(classifier, 40).class_counts)
    assert chosen.double().std() < unevenness


def test_with_batch_norm__the_images_are_nearer_to_what_it_remembers() -> None:
    classifier = make_classifier()
    layer = classifier.network.get_submodule("bn1")
    assert isinstance(layer, nn.BatchNorm2d)
    seen: list[torch.Tensor] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(args[0].mean((0, 2, 3))))
    drawn = make_calibration(classifier, 60).images
    with torch.no_grad():
        # What it would remember of pictures with black left halves.
        halves = drawn.clone()
        halves[..., :16] = 0
        classifier(halves / 255)
        layer.running_mean = seen[-1].clone()
        distances = []
        for images in (drawn, make_calibration(classifier, 60).images):
            classifier(images / 255)
            distances.append(torch.linalg.vector_norm(seen[-1] - layer.running_mean))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("num_images", [0, -3])
def test_no_images__are_refused(num_images: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        make_calibration(make_classifier(), num_images)


def test_channels_last__as_the_file_takes_them(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=4)
            self.fc = nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.conv(images.permute(0, 3, 1, 2)).relu()
            return self.fc(maps.mean((2, 3)))

    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Last(), (torch.zeros(2, 16, 16, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "last.pt2")
    brought = bring_teacher(SourceConfig(model=str(tmp_path / "last.pt2"), mean=0.5, std=0.25), scratch=tmp_path)
    made = make_calibration(brought.classifier, 6)
    assert made.inputs.shape == (6, 16, 16, 3)
    logits = torch.export.load(tmp_path / "last.pt2").module()(made.inputs)
    assert tuple(logits.argmax(1).bincount(minlength=4).tolist()) == made.class_counts


def test_half_precision__and_fixed_batches_of_a_file(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).half()
    torch.export.save(torch.export.export(network, (torch.zeros(4, 1, 8, 8).half(),)), tmp_path / "half.pt2")
    brought = bring_teacher(SourceConfig(model=str(tmp_path / "half.pt2")), scratch=tmp_path)
    assert make_calibration(brought.classifier, 5).inputs.dtype == torch.float16


def test_onnx_runtime__quantises_with_them(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    classifier = make_classifier()
    whole, small = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    write_onnx(capture(graph_of(classifier, normalises=False), classifier.card.image_shape), whole)
    # From the file alone, as somebody else's.
    brought = bring_teacher(SourceConfig(model=str(whole), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4)), scratch=tmp_path)
    write_calibration(tmp_path / "calib.npz", make_calibration(brought.classifier, 64))
    with needing("onnx"):
        from onnxruntime import InferenceSession
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self, path: Path) -> None:
                name = InferenceSession(whole).get_inputs()[0].name
                self._batches = iter({name: batch} for batch in np.split(np.load(path)[ARRAY], 2))

            def get_next(self) -> dict[str, Any] | None:
                return next(self._batches, None)

        quantize_static(whole, small, Reader(tmp_path / "calib.npz"), quant_format=QuantFormat.QDQ)
        answers = [
            InferenceSession(path).run(None, {"images": np.load(tmp_path / "calib.npz")[ARRAY]})[0].argmax(1)
            for path in (whole, small)
        ]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(small).graph.node}
    assert (answers[0] == answers[1]).mean() > 0.9


@pytest.mark.slow
def test_torchao__prepares_and_converts_with_them(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    # torchao traces a hundred small networks if one has BatchNorm.
    classifier = make_classifier("lenet5")
    write_calibration(tmp_path / "calib.npz", make_calibration(classifier, 32))
    inputs = torch.from_numpy(np.load(tmp_path / "calib.npz")[ARRAY])
    with needing("int8"), quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(classifier.network, (inputs,)).module(), quantizer)
        prepared(inputs)
        answers = convert_pt2e(prepared)(inputs).argmax(1)
    assert (answers == classifier.network(inputs).argmax(1)).double().mean() > 0.9


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the quantiser."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
