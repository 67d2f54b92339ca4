import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.programs import program_kind
from dfkd_core.models.storage import load_model, save_model
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.teachers.loading import bring_teacher, source_digest
from dfkd_core.teachers.source import SourceConfig

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
IMAGES = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def network(monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))
    sys.modules.pop("teachers_zoo", None)
    from teachers_zoo import Plain

    torch.manual_seed(0)
    return Plain().eval()


def export(network, path, *, batch=None, images=IMAGES):
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (images[: batch or 2],), dynamic_shapes=dynamic)
        torch.export.save(program, path)


def export_onnx(network, path, *, batch=None, dynamo=True):
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    if dynamo:
        torch.onnx.export(network, (IMAGES[: batch or 2],), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    else:
        axes = {} if batch else {"images": {0: "batch"}}
        given: dict[str, Any] = {"input_names": ["images"], "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
        torch.onnx.export(network, (IMAGES[: batch or 2],), path, **given)


def write(network, path, how):
    if how.startswith("pt2"):
        export(network, path, batch=3 if how.endswith("fixed") else None)
    elif how.startswith("onnx"):
        export_onnx(network, path, batch=3 if how.endswith("fixed") else None, dynamo="old" not in how)
    elif how == "script":
        torch.jit.script(network).save(path)
    else:
        torch.jit.trace(network, IMAGES[:2]).save(path)


def bring(path, tmp_path, **settings):
    return bring_teacher(SourceConfig(model=str(path), **settings), scratch=tmp_path, image_size_hint=16)


@pytest.mark.parametrize(
    ("how", "name", "layer"),
    [
        ("pt2", "net.pt2", "fc:input"),
        ("pt2-fixed", "net.pt2", OUTPUT),
        ("script", "net.pt", OUTPUT),
        ("trace", "net.ts", OUTPUT),
        ("onnx", "net.onnx", "node_linear:input"),
        ("onnx-old", "net.onnx", "fc/Gemm:input"),
        ("onnx-old-fixed", "net.onnx", OUTPUT),
    ],
)
def test_a_program_is_a_teacher(network, tmp_path, how, name, layer):
    write(network, tmp_path / name, how)
    brought = bring(tmp_path / name, tmp_path, mean=(0.5,), std=(0.25,))
    assert brought.classifier.card.layer == layer
    assert brought.classifier.card.image_shape == (1, 16, 16)
    wanted = network((IMAGES - 0.5) / 0.25)
    torch.testing.assert_close(brought.classifier(IMAGES), wanted, rtol=1e-4, atol=1e-4)
    assert any("logits are modelled instead" in note for note in brought.notes) == (layer == OUTPUT)
    teacher = Teacher(brought.classifier)
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    assert len(statistics.mean) == (10 if layer == OUTPUT else 64)
    save_model(tmp_path / "stored", brought.classifier)
    loaded = Teacher(load_model(tmp_path / "stored"))
    assert loaded.digest == teacher.digest
    torch.testing.assert_close(loaded(IMAGES), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_layers_that_see_a_batch_in_parts_are_not_modelled(network, tmp_path, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, (IMAGES[:batch],)), tmp_path / "net.pt2")
    brought = bring(tmp_path / "net.pt2", tmp_path)
    assert brought.classifier.card.layer == OUTPUT
    layer = next(name for name, _ in brought.classifier.network.named_modules() if name.endswith("fc"))
    with pytest.raises(TeacherError, match=r"takes a fixed number of images.*free batch"):
        bring_teacher(SourceConfig(model=str(tmp_path / "net.pt2")), scratch=tmp_path, layer=f"{layer}:input")


def test_the_weights_of_an_onnx_file_may_lie_beside_it(network, tmp_path):
    export_onnx(network, tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx.data").is_file()
    before = source_digest(SourceConfig(model=str(tmp_path / "net.onnx")))
    save_model(tmp_path / "stored", bring(tmp_path / "net.onnx", tmp_path).classifier)
    (tmp_path / "net.onnx.data").write_bytes(bytes(1000))
    assert source_digest(SourceConfig(model=str(tmp_path / "net.onnx"))) != before
    torch.testing.assert_close(load_model(tmp_path / "stored")(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)


def test_gradients_of_a_program_are_those_of_the_network(network, tmp_path):
    for how, name in (("pt2", "net.pt2"), ("pt2-fixed", "fixed.pt2"), ("script", "net.pt"), ("onnx", "net.onnx")):
        write(network, tmp_path / name, how)
        gradients = []
        for model in (bring(tmp_path / name, tmp_path).classifier, network):
            pixels = IMAGES.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(pixels)[:, 0].sum(), pixels)
            gradients.append(gradient)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_half_precision_is_float32_on_both_sides(network, tmp_path):
    export(network.to(torch.bfloat16), tmp_path / "half.pt2", images=IMAGES.to(torch.bfloat16))
    brought = bring(tmp_path / "half.pt2", tmp_path)
    logits = brought.classifier(IMAGES)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, network(IMAGES.to(torch.bfloat16)).float(), rtol=0.05, atol=0.05)


def test_a_program_that_was_changed_after_it_was_stored_is_refused(network, tmp_path):
    export(network, tmp_path / "net.pt2")
    save_model(tmp_path / "stored", bring(tmp_path / "net.pt2", tmp_path).classifier)
    with torch.no_grad():
        network.fc.bias.add_(1)
    export(network, tmp_path / "stored" / "model.pt2")
    with pytest.raises(TeacherError, match="has changed"):
        load_model(tmp_path / "stored")


@pytest.mark.parametrize("name", ["net.pt2", "net.onnx", "net.ts"])
def test_a_file_that_is_no_program_is_one_clear_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not a program")
    with pytest.raises(TeacherError, match=name):
        bring(tmp_path / name, tmp_path)


def test_a_program_that_takes_something_else_than_images_says_so(tmp_path, network):
    class Two(torch.nn.Module):
        def forward(self, x, y):
            return (x + y).mean((2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Two(), (IMAGES, IMAGES)), tmp_path / "two.pt2")
    torch.jit.script(Two()).save(tmp_path / "two.pt")
    for name in ("two.pt2", "two.pt"):
        with pytest.raises(TeacherError, match="takes 2 inputs"):
            bring(tmp_path / name, tmp_path)


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def rewritten(path, target, change):
    """Copy an archive with its members' content changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = change(name, source.read(name))
            copy.writestr(name, content)


def test_nothing_that_is_pickled_into_a_program_is_run(network, tmp_path):
    export(network, tmp_path / "net.pt2")
    executed = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save((Payload(executed),), buffer)

    def sample_inputs(name, content):
        return buffer.getvalue() if "sample_inputs" in name else content

    def weights(name, content):
        if not name.endswith("weights_config.json"):
            return buffer.getvalue() if name.endswith("/weight_0") else content
        config = json.loads(content)
        for entry in config["config"].values():
            entry["use_pickle"] = entry["path_name"] == "weight_0"
        return json.dumps(config)

    def constants(name, content):
        if not name.endswith("constants_config.json"):
            return content
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"x": entry}})

    def sizes(name, content):
        return content.replace(b"Symbol('s", b"__import__('pathlib').Path('executed').touch() or Symbol('s")

    for change in (sample_inputs, weights, constants, sizes):
        rewritten(tmp_path / "net.pt2", tmp_path / f"{change.__name__}.pt2", change)
        with pytest.raises(TeacherError):
            bring(tmp_path / f"{change.__name__}.pt2", tmp_path)
        assert not executed.exists(), change.__name__
        assert not Path("executed").exists(), change.__name__


def test_a_pickled_module_is_read_only_if_it_is_trusted_and_once(network, tmp_path):
    torch.save(network, tmp_path / "full.pt")
    with pytest.raises(TeacherError, match=r"holds more than tensors \(teachers_zoo\.Plain\).*--trust-pickle"):
        bring(tmp_path / "full.pt", tmp_path)
    brought = bring(tmp_path / "full.pt", tmp_path, trust_pickle=True)
    assert brought.classifier.card.network == "pt2"
    torch.testing.assert_close(brought.classifier(IMAGES), network(IMAGES))
    save_model(tmp_path / "stored", brought.classifier)
    (tmp_path / "full.pt").unlink()
    torch.testing.assert_close(load_model(tmp_path / "stored")(IMAGES), network(IMAGES))


def test_the_class_of_a_pickled_module_is_looked_for_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "users_own.py").write_text("from torch import nn\n\n\nclass Own(nn.Sequential):\n    pass\n")
    layers = "nn.Flatten(), nn.Linear(64, 10)"
    save = f"import torch; from torch import nn; from users_own import Own; torch.save(Own({layers}), 'own.pt')"
    subprocess.run([sys.executable, "-c", save], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(TeacherError, match=r"needs the module 'users_own'.*PYTHONPATH"):
        bring(tmp_path / "own.pt", tmp_path, trust_pickle=True)
    monkeypatch.chdir(tmp_path)
    assert bring(tmp_path / "own.pt", tmp_path, trust_pickle=True).classifier.card.image_shape == (1, 8, 8)
    sys.modules.pop("users_own")


def test_a_pickled_module_may_ask_for_the_number_of_images(network, tmp_path):
    from teachers_zoo import Transformer

    transformer = Transformer().eval()
    torch.save(transformer, tmp_path / "full.pt")
    brought = bring(tmp_path / "full.pt", tmp_path, trust_pickle=True, image_size=8)
    for count in (1, 5):
        images = IMAGES[:count, :, :8, :8]
        torch.testing.assert_close(brought.classifier(images), transformer(images), rtol=1e-4, atol=1e-4)


def test_kinds_are_told_by_suffix_or_content(network, tmp_path):
    torch.jit.script(network).save(tmp_path / "script.pth")
    export(network, tmp_path / "net.pt2")
    (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
    torch.save(network.state_dict(), tmp_path / "state.pt")
    kinds = [program_kind(tmp_path / name) for name in ("script.pth", "net.pt", "state.pt")]
    assert kinds == ["torchscript", "pt2", None]


def test_a_program_with_the_channels_last_takes_images_like_any_other(tmp_path):
    torch.manual_seed(0)
    convolution, head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
    tensors = {"k": convolution.weight, "b": convolution.bias, "w": head.weight, "v": head.bias}
    nodes = [
        onnx.helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Conv", ["t", "k", "b"], ["c"], kernel_shape=[3, 3]),
        onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "w", "v"], ["z"], transB=1),
    ]
    size = onnx.TensorProto.FLOAT
    for batch in ("n", 1):
        graph = onnx.helper.make_graph(
            nodes,
            "keras",
            [onnx.helper.make_tensor_value_info("image", size, [batch, 16, 16, 3])],
            [onnx.helper.make_tensor_value_info("z", size, [batch, 10])],
            [onnx.numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in tensors.items()],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, tmp_path / "keras.onnx")
        brought = bring(tmp_path / "keras.onnx", tmp_path)
        assert brought.classifier.card.image_shape == (3, 16, 16)
        save_model(tmp_path / "stored", brought.classifier)
        images = torch.rand(3, 3, 16, 16)
        wanted = head(convolution(images).relu().mean((2, 3)))
        torch.testing.assert_close(load_model(tmp_path / "stored")(images), wanted, rtol=1e-4, atol=1e-4)
