"""Size and speed of the exported forms of a network, on one thread of this machine.

    python benchmarks/exported.py lenet5_half alexnet_half resnet18_half

Each form runs in its own runtime: `model.pt2` and `model_int8.pt2` in PyTorch without compilation, `model.onnx` and
`model_int8.onnx` in ONNX Runtime. Milliseconds are the median of 30 passes. The weights are random, since speed does
not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hardware import processor_name
from onnxruntime import InferenceSession, SessionOptions

from dfkd_core.export.forms import read_pt2
from dfkd_core.export.run import choose_images, export_model, probe_images
from dfkd_core.models.built_in import default_layer
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier

NUM_PASSES = 30
BATCH_SIZES = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="+", help="names of networks, for images of 3x32x32")
    torch.set_num_threads(1)
    print(f"{processor_name()}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{'':<33} {'size':>9}  " + "  ".join(f"{f'{size} images':>12}" for size in BATCH_SIZES))
    for name in parser.parse_args().networks:
        with tempfile.TemporaryDirectory() as folder:
            _measure(name, Path(folder) / "exported")


def _measure(name: str, out: Path) -> None:
    card = ModelCard(
        network=name, in_channels=3, image_size=32, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3,
        layer=default_layer(name),
    )  # fmt: skip
    student = build_classifier(card, seed=0).eval()
    checked, calibration = choose_images(probe_images(card.image_shape))
    report = export_model(
        student, out, formats=("safetensors", "pt2", "onnx"), images=checked, calibration=calibration, min_agreement=0
    )
    for form in report.forms:
        predict = _load(out / form.file, student)
        times = "  ".join(f"{_milliseconds(predict, size):>9.2f} ms" for size in BATCH_SIZES)
        print(f"{name:<15} {form.file:<17} {form.size_bytes / 1000:>6,.0f} kB  {times}", flush=True)


def _load(path: Path, student: Classifier) -> Callable[[torch.Tensor], object]:
    if path.suffix == ".safetensors":
        return student
    if path.suffix == ".pt2":
        return read_pt2(path)
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


@torch.inference_mode()
def _milliseconds(predict: Callable[[torch.Tensor], object], batch_size: int) -> float:
    images = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(NUM_PASSES + 3):
        started = time.perf_counter()
        predict(images)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[3:])


if __name__ == "__main__":
    main()
