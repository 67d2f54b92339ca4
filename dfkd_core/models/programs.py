"""Networks saved as programs: `.pt2` of torch.export, TorchScript and ONNX.

Reading a program runs no Python code of its author: anything that would have to be unpickled or evaluated is refused,
see `program_checks` and `onnx_files`.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dfkd_core.common.regular_files import read_regular
from dfkd_core.errors import TeacherError, first_line
from dfkd_core.installing import install_command
from dfkd_core.models.layouts import (
    ChannelsFirst,
    Permutation,
    channels_are_last,
    first_permutation,
    onnx_permutation,
)
from dfkd_core.models.onnx_files import check_graph, external_place, external_tensors, load_external
from dfkd_core.models.program_checks import check_exported, check_script

__all__ = [
    "PROGRAM_FILES",
    "Program",
    "ProgramInput",
    "ProgramKind",
    "export_program",
    "in_one_file",
    "load_program",
    "program_files",
    "program_input",
    "program_kind",
    "trace_program",
]

ProgramKind = Literal["pt2", "torchscript", "onnx"]

PROGRAM_FILES: dict[str, str] = {"pt2": "model.pt2", "torchscript": "model.ts", "onnx": "model.onnx"}
"""Name of a program's file in the folder of its card."""

_SUFFIXES = {".pt2": "pt2", ".ts": "torchscript", ".torchscript": "torchscript", ".onnx": "onnx"}
_ONNX_OPSET = 17
_InputShape = tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Program:
    """A program as a module, and the input shape that its file declares."""

    network: nn.Module
    """Takes normalised float32 images [n, c, h, w], any n."""
    image_shape: tuple[int | None, ...] | None
    """(c, h, w) of an image, None for a dimension that the file leaves open."""


@dataclass(frozen=True, slots=True)
class ProgramInput:
    """The form in which a network's own file takes its images, as opposed to the module that dfkd makes of it."""

    channels_last: bool
    """Whether it takes [n, h, w, c], not [n, c, h, w]."""
    dtype: torch.dtype
    batch_size: int | None
    """Number of images that it takes at once; None for any."""


def program_input(network: nn.Module) -> ProgramInput:
    """Return how the file of a network takes images; a network that is no program takes float32 [n, c, h, w]."""
    dtype, batch_size = torch.float32, None
    if isinstance(network, _InPrecision):
        dtype, network = network.precision, network.program
    if isinstance(network, _FixedBatch):
        batch_size, network = network.batch_size, network.program
    return ProgramInput(isinstance(network, ChannelsFirst), dtype, batch_size)


def program_kind(path: Path) -> ProgramKind | None:
    """Return the kind of a program by the file's suffix or, for `.pt` and `.pth`, its content; None for no program."""
    if path.suffix in _SUFFIXES:
        kind: ProgramKind = _SUFFIXES[path.suffix]  # type: ignore[assignment]
        return kind
    if path.suffix not in (".pt", ".pth") or not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return None
    if any(name.startswith("models/") for name in names):
        return "pt2"
    return "torchscript" if "constants.pkl" in names and any(name.startswith("code/") for name in names) else None


def load_program(path: Path, kind: ProgramKind, *, sha256: str | None = None) -> Program:
    """Read a program.

    The layers of `pt2` and `onnx` programs have module paths and accept hooks. Those of TorchScript, and of programs
    with a fixed number of images, do not.

    Args:
        path: The file; it is read once, so the bytes that are checked are those that are loaded.
        kind: Its kind, see `program_kind`.
        sha256: Digest that the file must have; None accepts any.

    Raises:
        TeacherError: The file is missing, corrupt or another one, could be read in two ways, needs unpickling, uses an
            operation that cannot be read, or the program takes anything but one tensor of images.
    """
    readers = {"pt2": _load_exported, "torchscript": _load_script, "onnx": _load_onnx}
    content = _read_program(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != found:
        raise TeacherError(f"{path} has changed (sha256 {found}, its config.json has {sha256}). Make it with: dfkd run")
    try:
        program, shape, permutation = readers[kind](path, content)
    except TeacherError:
        raise
    except Exception as error:  # each reader has a dozen errors for an incomplete file
        if kind == "onnx" and isinstance(error, ModuleNotFoundError):
            raise _lacking(path, str(error.name)) from None
        raise TeacherError(f"{path} cannot be read as {kind}: {first_line(error)}. Export it again") from error
    tensors = [tensor for tensor in program.state_dict().values() if tensor.is_floating_point()]
    precision = tensors[0].dtype if tensors else torch.float32
    if channels_are_last(shape, permutation):
        program, shape = ChannelsFirst(program), shape and (shape[0], shape[3], shape[1], shape[2])
    if shape and shape[0] is not None:
        program = _FixedBatch(program, shape[0])
    if precision != torch.float32:
        program = _InPrecision(program, precision)
    return Program(program, shape[1:] if shape else None)


def _read_program(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise TeacherError(f"No program {path}. Correct teacher.source.model") from None
    except OSError as error:
        raise TeacherError(f"The program {path} cannot be read: {error}. Correct teacher.source.model") from None


def program_files(path: Path) -> list[Path]:
    """Return the files that a program consists of: an ONNX file may keep its weights in other files next to it.

    Raises:
        TeacherError: It is not an ONNX file, its weights are outside its folder, or the package that reads it is
            missing.
    """
    if path.suffix != ".onnx":
        return [path]
    model = _parse_onnx(path, _read_program(path))
    return [path, *sorted({external_place(path, tensor).path for tensor in external_tensors(model)})]


def in_one_file(path: Path, folder: Path) -> Path:
    """Return the program as a single file: the file itself, or an ONNX file with its weights written into `folder`."""
    if len(program_files(path)) == 1:
        return path
    whole = folder / PROGRAM_FILES["onnx"]
    model = _parse_onnx(path, _read_program(path))
    load_external(path, model)
    _import_onnx(path).save(model, str(whole), save_as_external_data=False)
    return whole


def trace_program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Capture a network with torch.export for any number of images.

    Args:
        network: Its forward takes one tensor.
        images: Two or more images [n, c, h, w] of the shape that the program takes.

    Raises:
        Exception: Any error of its code or of the tracer.
    """
    free = ({0: torch.export.Dim("batch", min=1)},)
    try:
        return torch.export.export(network, (images,), dynamic_shapes=free, strict=False)
    except Exception:
        # `len(images)` is a plain number unless the tracer reads the code itself.
        with suppress(Exception):
            return torch.export.export(network, (images,), dynamic_shapes=free, strict=True)
        raise


def export_program(network: nn.Module, image_shape: tuple[int, int, int], path: Path) -> None:
    """Write a network as a `.pt2` program for any number of images.

    Raises:
        TeacherError: torch.export cannot trace its forward.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(trace_program(network.eval(), torch.zeros(2, *image_shape)), path)
    except Exception as error:  # any error from a forward that cannot be traced
        raise TeacherError(
            f"The module cannot be exported: {first_line(error)}. Load it as package.module:factory with a state dict"
        ) from error


def _load_exported(path: Path, content: bytes) -> tuple[nn.Module, _InputShape, Permutation]:
    _check(path, check_exported, content)
    with _weights_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(content))
        names = set(program.graph_signature.user_inputs)
        inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 4:
            raise TeacherError(
                f"{path} takes {len(inputs)} inputs ({', '.join(map(_shape_of, inputs))}); a teacher takes one, images "
                "of shape (n, c, h, w)"
            )
        shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
        return torch.export.unflatten(program), shape, first_permutation(program)


def _check(path: Path, check: Callable[[bytes], None], content: bytes) -> None:
    """Convert the fault that a check finds into a `TeacherError`."""
    try:
        check(content)
    except ValueError as error:
        raise TeacherError(
            f"{path} is refused: {error}. It is incomplete or was made to mislead: copy it again, or request another "
            "one"
        ) from None


@contextmanager
def _weights_only() -> Iterator[None]:
    """Restrict torch.load to tensors, even if the caller requests more: torch.export falls back to full unpickling."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _load_script(path: Path, content: bytes) -> tuple[nn.Module, _InputShape, Permutation]:
    _check(path, check_script, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
    inputs = list(program.forward.schema.arguments)[1:]  # type: ignore[attr-defined]
    needed = [argument.name for argument in inputs if not argument.has_default_value()]
    if len(needed) != 1:
        raise TeacherError(f"{path} takes {len(needed)} inputs ({', '.join(needed)}); a teacher takes one, images")
    return program.eval(), None, first_permutation(program)


def _lacking(path: Path, package: str) -> TeacherError:
    return TeacherError(f"Reading {path} needs {package}. Install it with: {install_command('onnx')}")


def _import_onnx(path: Path) -> Any:
    try:
        return importlib.import_module("onnx")
    except ModuleNotFoundError:
        raise _lacking(path, "onnx") from None


def _parse_onnx(path: Path, content: bytes) -> Any:
    onnx = _import_onnx(path)
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has a separate class for each kind of corruption
        raise TeacherError(f"{path} is not an ONNX file: {first_line(error)}. Export it again") from error


def _load_onnx(path: Path, content: bytes) -> tuple[nn.Module, _InputShape, Permutation]:
    model = _parse_onnx(path, content)
    # onnx2torch imports torchvision, which `common.vision` must load first.
    importlib.import_module("dfkd_core.common.vision")
    onnx2torch = importlib.import_module("onnx2torch")
    check_graph(path, model)
    load_external(path, model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs)
        raise TeacherError(f"{path} takes {len(inputs)} inputs ({names}); a teacher takes one, images of (n, c, h, w)")
    sizes = inputs[0].type.tensor_type.shape.dim
    shape = tuple(size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in sizes)
    if len(shape) != 4:
        raise TeacherError(f"{path} takes {len(shape)} dimensions; a teacher takes images of (n, c, h, w)")
    try:
        network: nn.Module = onnx2torch.convert(_readable(model))
    except NotImplementedError as error:
        raise TeacherError(
            f"{path} uses an operation that onnx2torch cannot convert: {error}. Export it with opset {_ONNX_OPSET} or "
            "lower, or export the network as .pt2"
        ) from None
    return network.eval(), shape, onnx_permutation(model.graph, inputs[0].name)


def _readable(model: Any) -> Any:
    """Rewrite operations that newer exporters write and onnx2torch cannot read; the numbers stay the same."""
    import onnx
    from onnx import helper, inliner, version_converter

    if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) > _ONNX_OPSET:
        model = inliner.inline_selected_functions(model, [("", "Gelu")], inline_schema_functions=True)
        model = version_converter.convert_version(model, _ONNX_OPSET)
    weights = {tensor.name for tensor in model.graph.initializer}
    renamed = {}
    for node in list(model.graph.node):
        if node.op_type == "Identity" and node.input[0] in weights:
            renamed[node.output[0]] = node.input[0]
            model.graph.node.remove(node)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        if node.op_type == "Reshape":
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type == "CastLike":
            node.op_type = "Cast"
            del node.input[1:]
            node.attribute.append(helper.make_attribute("to", onnx.TensorProto.FLOAT))
    return model


class _FixedBatch(nn.Module):
    """A program with a fixed number of images, run as often as needed; the last run is padded with zeros."""

    runs_in_parts = True

    def __init__(self, program: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.program = program
        self.batch_size = batch_size

    def forward(self, images: Tensor) -> Any:
        size = self.batch_size
        missing = -len(images) % size
        padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
        outputs = [self.program(part) for part in torch.split(padded, size)]
        if not all(isinstance(output, Tensor) for output in outputs):
            raise TeacherError(
                f"The program takes {size} images at once and returns several tensors. Export it with a dynamic "
                "batch or with one output"
            )
        return torch.cat(outputs)[: len(images)]


class _InPrecision(nn.Module):
    """A program in another precision, with float32 input and output."""

    def __init__(self, program: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        self.program = program
        self.precision = precision

    def forward(self, images: Tensor) -> Any:
        return _as_float(self.program(images.to(self.precision)))


def _as_float(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {name: _as_float(value) for name, value in output.items()}
    return type(output)(map(_as_float, output)) if isinstance(output, (tuple, list)) else output


def _shape_of(value: Any) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
