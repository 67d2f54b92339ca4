"""Programs with the channels last are recognised by their first operators if their shapes leave it open."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.storage import load_model, save_model
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class Network(nn.Module):
    """Takes channels first."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(channels, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x - 0.5)).mean((2, 3)))


class Permuted(Network):
    """Takes channels last."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.5).permute(0, 3, 1, 2)
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


class Moved(Permuted):
    """Takes channels last, and reads their number first."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.5 * x.shape[3] / 3).movedim(-1, 1)
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def write_keras(network: Network, path: Path, sizes: list[Any]) -> None:
    """Write an ONNX file as converters of Keras models do: pixels are shifted, then transposed."""
    tensors = {"k": network.conv.weight, "b": network.conv.bias, "w": network.fc.weight, "v": network.fc.bias}
    tensors |= {"half": torch.full((network.conv.in_channels,), 0.5)}
    nodes = [
        onnx.helper.make_node("Sub", ["image", "half"], ["s"]),
        onnx.helper.make_node("Transpose", ["s"], ["t"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Conv", ["t", "k", "b"], ["c"], kernel_shape=[3, 3]),
        onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "w", "v"], ["z"], transB=1),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "keras",
        [onnx.helper.make_tensor_value_info("image", kind, sizes)],
        [onnx.helper.make_tensor_value_info("z", kind, [sizes[0], 10])],
        [onnx.numpy_helper.from_array(t.detach().numpy(), name) for name, t in tensors.items() if t is not None],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)


def bring(path: Path, **settings: Any) -> Any:
    return bring_teacher(SourceConfig(model=str(path), **settings), scratch=path.parent, image_size_hint=16).classifier


@pytest.mark.parametrize(
    ("sizes", "channels"), [(["n", "h", "w", "c"], 3), (["n", "h", "w", "c"], 1), (["n", 16, 16, 16], 16)]
)
def test_an_onnx_file_that_transposes_first__has_the_channels_last(
    tmp_path: Path, sizes: list[Any], channels: int
) -> None:
    network = Network(channels)
    write_keras(network, tmp_path / "keras.onnx", sizes)
    brought = bring(tmp_path / "keras.onnx")
    assert brought.card.image_shape == (channels, 16, 16)
    save_model(tmp_path / "stored", brought)
    images = torch.rand(3, channels, 16, 16)
    for loaded in (brought, load_model(tmp_path / "stored")):
        torch.testing.assert_close(loaded(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "how"), [(Permuted, "pt2-open"), (Permuted, "script"), (Moved, "pt2"), (Moved, "trace")]
)
def test_programs_of_pytorch_that_permute_first__have_the_channels_last(
    tmp_path: Path, kind: type[Network], how: str
) -> None:
    network, images = kind().eval(), torch.rand(2, 16, 16, 3)
    path = tmp_path / ("net.pt2" if how.startswith("pt2") else "net.ts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how.startswith("pt2"):
            sides = {} if how == "pt2" else dict.fromkeys((1, 2), torch.export.Dim("side", min=8, max=64))
            program = torch.export.export(
                network, (images,), dynamic_shapes=({0: torch.export.Dim("n"), **sides},), strict=False
            )
            torch.export.save(program, path)
        else:
            (torch.jit.script(network) if how == "script" else torch.jit.trace(network, images)).save(path)
    brought = bring(path)
    assert brought.card.image_shape == (3, 16, 16)
    torch.testing.assert_close(brought(images.permute(0, 3, 1, 2)), network(images), rtol=1e-4, atol=1e-4)


def test_a_program_with_channels_first__stays_as_it_is(tmp_path: Path) -> None:
    network = Network(16).eval()
    torch.jit.script(network).save(tmp_path / "net.ts")
    brought = bring(tmp_path / "net.ts", in_channels=16, image_size=16)
    images = torch.rand(2, 16, 16, 16)
    torch.testing.assert_close(brought(images), network(images), rtol=1e-4, atol=1e-4)


def test_a_program_of_other_sides__is_refused_by_both(tmp_path: Path) -> None:
    write_keras(Network(), tmp_path / "keras.onnx", ["n", 32, 48, 3])
    with pytest.raises(TeacherError, match="takes images of 32x48 pixels"):
        bring(tmp_path / "keras.onnx")
