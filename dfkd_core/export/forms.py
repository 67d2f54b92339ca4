"""Writers of the exported forms of a student, and readers for their check.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from dfkd_core.errors import ExportError
from dfkd_core.export.fidelity import Predict
from dfkd_core.installing import install_command
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.programs import trace_program
from dfkd_core.models.storage import WEIGHTS_FILE, load_model, read_card, save_model

__all__ = [
    "ONNX_SETTINGS",
    "OnnxSetting",
    "capture",
    "graph_of",
    "is_installed",
    "needing",
    "packages",
    "read_onnx",
    "read_pt2",
    "read_safetensors",
    "write_onnx",
    "write_pt2",
    "write_safetensors",
]

# Packages of each extra of pyproject.toml.
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "int8": ("torchao",)}
OnnxSetting = Literal["default", "session.x64quantprecision=1", "optimisation off"]
ONNX_SETTINGS: tuple[OnnxSetting, ...] = ("default", "session.x64quantprecision=1", "optimisation off")
"""Settings of ONNX Runtime with which users may run an int8 file; the second and third use other integer kernels."""

# Debugging notes of the tracer, with paths of this machine.
_NOTES = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node")


def packages(extra: str) -> tuple[str, ...]:
    """Return the packages that an extra, `onnx` or `int8`, needs."""
    return _PACKAGES[extra]


def is_installed(extra: str) -> bool:
    """Return whether the packages of an extra, `onnx` or `int8`, can be found."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES[extra])


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Run a block that needs the packages of an extra, and silence what they print on import.

    Raises:
        ExportError: One of them is missing; the message states how to install it.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in _PACKAGES[extra]:
                importlib.import_module(name)
            yield
    except ImportError as error:
        raise ExportError(
            f"The package {error.name or _PACKAGES[extra][0]} cannot be imported: {error}. "
            f"Install it with: {install_command(extra)}"
        ) from error
    finally:
        logging.disable(disabled)


def graph_of(student: Classifier, *, normalises: bool) -> nn.Module:
    """Return a module on the CPU that computes the same as an exported graph; the student is not changed.

    Args:
        student: In eval mode.
        normalises: Whether the graph takes images in [0, 1] and normalises them, or takes normalised ones.
    """
    classifier = copy.deepcopy(student).cpu()
    classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
    # A network may choose its operators by whether gradients are enabled; other runtimes have those of training.
    for parameter in classifier.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    settles_layout = not student.card.channels_last
    if normalises:
        return _Graph(classifier, settles_layout=settles_layout)
    if _only_normalises(classifier):
        return _Graph(classifier.network, settles_layout=settles_layout)
    classifier.mean.zero_()
    classifier.std.fill_(1)
    return _Graph(classifier, settles_layout=settles_layout)


def capture(graph: nn.Module, image_shape: tuple[int, int, int]) -> ExportedProgram:
    """Capture a module with `torch.export` for any number of images of shape (c, h, w).

    Raises:
        ExportError: It cannot be captured, for example because its operations depend on the images' values.
    """
    images = torch.zeros(2, *image_shape)
    try:
        with torch.enable_grad():
            program = trace_program(graph, images)
    except Exception as error:  # the tracer raises the network's errors and its own
        first_line = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"torch.export cannot capture the network for batches of any size: {first_line}. "
            "Choose the form that needs no capture: --format safetensors"
        ) from error
    for node in program.graph.nodes:
        for note in _NOTES:
            node.meta.pop(note, None)
    return program


def write_safetensors(student: Classifier, folder: Path) -> None:
    """Write `model.safetensors`, with the format that transformers expects in its header, and `config.json`."""
    save_model(folder, student)
    if student.program is None:
        path = folder / WEIGHTS_FILE
        save_file(load_file(path), path, metadata={"format": "pt"})


def write_pt2(program: ExportedProgram, path: Path) -> None:
    """Write a captured network as a `torch.export` archive; the same network and file name give the same bytes.

    Raises:
        ExportError: It cannot be written.
    """
    try:
        torch.export.save(program, path)
    except OSError:
        raise
    except Exception as error:  # the serialiser has no error class of its own
        raise ExportError(
            f"The network cannot be written as pt2: {error}. Choose another form: --format safetensors"
        ) from error


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write a captured network as one ONNX file with the input `images`, the output `logits` and the axis `batch`.

    Raises:
        ExportError: A package is missing, or an operator has no ONNX counterpart.
    """
    with needing("onnx"):
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: "batch"}},
                external_data=False,
                verbose=False,
            )
            assert made is not None
            _drop_notes(made.model)
            _shift_to_unsigned(made.model)
            made.save(path)
        except Exception as error:  # the converter has its own error classes, protobuf raises a ValueError beyond 2 GB
            raise ExportError(
                f"The network cannot be written as ONNX: {error}. Choose other forms: --format safetensors --format pt2"
            ) from error


def read_safetensors(folder: Path) -> Predict:
    """Load `model.safetensors` and `config.json`, which this process has just written."""
    return load_model(folder, trusted_factories=[read_card(folder).network])


def read_pt2(path: Path) -> Predict:
    """Load a `torch.export` archive, float or int8."""
    # Registers the operators of int8.
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    loaded: nn.Module = torch.export.load(path).module()
    return loaded


def read_onnx(path: Path, setting: OnnxSetting = "default") -> Predict:
    """Load an ONNX file with ONNX Runtime on the CPU.

    Args:
        path: The file.
        setting: Setting of the session, one of `ONNX_SETTINGS`.
    """
    with needing("onnx"):
        from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

        options = SessionOptions()
        if setting == "session.x64quantprecision=1":
            options.add_session_config_entry("session.x64quantprecision", "1")
        elif setting == "optimisation off":
            options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
        session = InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])

    return predict


class _Graph(nn.Module):
    """Names the single input of any module, and converts its memory layout if the module needs another one."""

    def __init__(self, model: nn.Module, *, settles_layout: bool) -> None:
        super().__init__()
        self.model = model
        self._settles_layout = settles_layout

    def forward(self, images: Tensor) -> Tensor:
        if self._settles_layout:
            images = images.clone(memory_format=torch.contiguous_format)
        logits: Tensor = self.model(images)
        return logits


@torch.inference_mode()
def _only_normalises(classifier: Classifier) -> bool:
    """Return whether the classifier returns its network's output unchanged."""
    images = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, *classifier.card.image_shape)
    output = classifier.answer(images)
    return isinstance(output, Tensor) and torch.equal(output, classifier(images))


def _drop_notes(model: object) -> None:
    """Delete the converter's notes from an ONNX model."""
    for holder in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.outputs):  # type: ignore[attr-defined]
        holder.metadata_props.clear()


def _shift_to_unsigned(model: Any) -> None:
    """Store every int8 weight of an ONNX model as uint8 with 128 added to it and to its zero point.

    The represented numbers stay the same. On processors with AVX2 and without VNNI, ONNX Runtime multiplies uint8
    activations by int8 weights with an instruction that adds pairs in 16 bits and saturates; it widens uint8 weights.
    """
    import onnx_ir

    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        for value in node.inputs:
            # Zero points can be shared between nodes: a tensor that was shifted is no longer int8.
            constant = None if value is None else value.const_value
            if constant is not None and constant.dtype == onnx_ir.DataType.INT8:
                shifted = (constant.numpy().astype(np.int16) + 128).astype(np.uint8)
                value.const_value = onnx_ir.Tensor(shifted, name=value.name)
                value.dtype = onnx_ir.DataType.UINT8
