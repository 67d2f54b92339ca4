"""int8 models of ONNX Runtime, calibrated on real images, on noise, and on the images of `dfkd calibrate`.

    python benchmarks/calibration.py --teacher my_nets:resnet20 --weights resnet20.th --mean 0.485 0.456 0.406 \
        --std 0.229 0.224 0.225 --train folder:cifar/train --test folder:cifar/test

The network is quantised statically (QDQ, MinMax ranges, uint8 activations, int8 weights per channel) with 256 images
and three seeds. `logits` is the ratio of the float logits to the error of the int8 ones in decibels. Sums are exact
(session.x64quantprecision=1), so that a processor without VNNI does not saturate.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfkd_core.common.pixels import dequantise
from dfkd_core.data.datasets import DataConfig
from dfkd_core.evaluation.labelled_images import EvaluationData, load_evaluation_data
from dfkd_core.export.calibration import make_calibration
from dfkd_core.export.fidelity import predict_all
from dfkd_core.export.forms import capture, graph_of, needing, read_onnx, write_onnx
from dfkd_core.models.classifier import Classifier
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig

NUM_IMAGES = 256
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--weights", default="")
    parser.add_argument("--mean", type=float, nargs="+", default=())
    parser.add_argument("--std", type=float, nargs="+", default=())
    parser.add_argument("--train", required=True, help="as data.dataset; real images for the calibration")
    parser.add_argument("--test", required=True, help="as data.dataset; labelled images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = SourceConfig(
        model=options.teacher, weights=options.weights, mean=tuple(options.mean), std=tuple(options.std), image_size=32
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classifier = bring_teacher(source, scratch=folder).classifier
        train, test = (_load(data, classifier) for data in (options.train, options.test))
        whole = folder / "model.onnx"
        write_onnx(capture(graph_of(classifier, normalises=False), classifier.card.image_shape), whole)
        expected = _logits(whole, classifier, test)
        print(f"float: accuracy {_share(expected.argmax(1) == test.labels)}, {len(test)} test images", flush=True)
        rows: dict[str, list[tuple[float, float, float]]] = {}
        for seed in SEEDS:
            for kind, images in _calibrations(classifier, train, seed):
                quantise(whole, folder / "int8.onnx", classifier.normalise(images))
                found = _logits(folder / "int8.onnx", classifier, test)
                rows.setdefault(kind, []).append(_figures(found, expected, test.labels))
    for kind, figures in rows.items():
        means, deviations = np.mean(figures, 0), np.std(figures, 0, ddof=1)
        shown = (f"{mean:6.2f} ± {spread:.2f}" for mean, spread in zip(means, deviations))
        print(f"{kind:<8} accuracy, agreement, logits: {'   '.join(shown)}")


def _load(dataset: str, classifier: Classifier) -> EvaluationData:
    found = load_evaluation_data(DataConfig(dataset=dataset), classifier.card)
    assert found is not None
    return found


def _calibrations(classifier: Classifier, train: EvaluationData, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(len(train), generator=generator)[:NUM_IMAGES]
    yield "real", dequantise(train.images[positions])
    yield "noise", torch.rand(NUM_IMAGES, *classifier.card.image_shape, generator=generator)
    started = time.perf_counter()
    made = make_calibration(classifier, NUM_IMAGES, seed=seed)
    print(f"seed {seed}: dfkd calibrate took {time.perf_counter() - started:.1f} s", flush=True)
    yield "dfkd", dequantise(made.images)


def quantise(whole: Path, small: Path, inputs: Tensor) -> None:
    logging.disable(logging.WARNING)
    with needing("onnx"):
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
            def __init__(self) -> None:
                self._batches = iter([{"images": batch.contiguous().numpy()} for batch in torch.split(inputs, 64)])

            def get_next(self) -> dict[str, Any] | None:
                return next(self._batches, None)

        quantize_static(
            whole, small, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip


def _logits(path: Path, classifier: Classifier, test: EvaluationData) -> Tensor:
    return predict_all(
        read_onnx(path, "session.x64quantprecision=1"), test.images, prepare=classifier.normalise, name=path.name
    )


def _figures(found: Tensor, expected: Tensor, labels: Tensor) -> tuple[float, float, float]:
    accuracy, agreement = (
        100 * (found.argmax(1) == other).double().mean().item() for other in (labels, expected.argmax(1))
    )
    error = (found - expected).square().sum() / expected.square().sum()
    return accuracy, agreement, -10 * torch.log10(error).item()


def _share(is_right: Tensor) -> str:
    return f"{is_right.double().mean().item():.2%}"


if __name__ == "__main__":
    main()
