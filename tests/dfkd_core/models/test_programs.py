import io
import json
import os
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
from dfkd_core.models.programs import load_program, program_files, program_kind
from dfkd_core.models.storage import load_model, save_model
from dfkd_core.models.teacher import Teacher
from dfkd_core.models.weights import read_state
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
    numbers = (tmp_path / "net.onnx.data").read_bytes()
    (tmp_path / "net.onnx.data").write_bytes(bytes(len(numbers)))
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


def of_exported(network, tmp_path, change):
    """Write a `.pt2` file whose members, or whose program in JSON, are changed."""
    export(network, tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    program = json.loads(members["net/models/model.json"])
    change(members, program)
    members["net/models/model.json"] = json.dumps(program).encode()
    with zipfile.ZipFile(tmp_path / "changed.pt2", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return tmp_path / "changed.pt2"


def signature(program):
    entries = program["graph_module"]["module_call_graph"]
    return next(entry["signature"] for entry in entries if entry.get("signature"))


CODE = "__import__('pathlib').Path('executed').touch()"


def change_target(members, program):
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.serialization.os.system"


def change_to_a_method(members, program):
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.add.__call__"


def change_to_a_reader(members, program):
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def change_the_name_of_an_input(members, program):
    program["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = f"x={CODE}"


def change_the_arguments(members, program):
    signature(program)["forward_arg_names"] = [f"x={CODE}"]


def change_an_address(members, program):
    spec = program["graph_module"]["signature"]["input_specs"][0]["parameter"]
    spec["parameter_name"] = f'x"+{CODE}+"'


def change_the_structure(members, program):
    context = json.dumps([{"__enum__": True, "fqn": "enum_that_is_imported:X", "name": "y"}])
    spec = {"type": "builtins.dict", "context": context, "children_spec": []}
    signature(program)["in_spec"] = json.dumps([1, spec])


def change_the_structure_and_hide_it(members, program):
    change_the_structure(members, program)
    signature(program)["in_spec"] = signature(program)["in_spec"].replace("__enum__", "\\u005f_enum__")


def change_a_size_to_a_bomb(members, program):
    program["graph_module"]["graph"]["sym_int_values"] = {"s0": {"as_expr": {"expr_str": "9**9**9**9**9**9"}}}


def change_a_guard(members, program):
    program["guards_code"] = ["L['images'].size()[0] >= 2", CODE]


def change_a_guard_to_a_call(members, program):
    program["guards_code"] = ["open('executed', 'w')"]


def add_compiled_code(members, program):
    members["net/data/aotinductor/model/model.so"] = b"\x7fELF"


def add_another_program(members, program):
    members["net/models/other.json"] = b"{}"


def add_a_name_in_capitals(members, program):
    members["net/MODELS/model.json"] = b"{}"


def add_another_folder(members, program):
    members["other/models/model.json"] = b"{}"


def add_a_pickled_constant(members, program):
    members["net/data/constants/opaque_obj_0"] = b""


CHANGES = [value for name, value in list(globals().items()) if name.startswith(("change_", "add_"))]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_part_that_becomes_code_is_refused(network, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "enum_that_is_imported.py").write_text("open('executed', 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = of_exported(network, tmp_path, change)
    with pytest.raises(TeacherError, match=rf"{path.name} is refused: it"):
        load_program(path, "pt2")
    assert not Path("executed").exists()


def test_an_exported_program_that_is_packed_again_is_read(network, tmp_path):
    def guard(members, program):
        program["guards_code"] = ["L['images'].size()[0] >= 2", "Mod(max(len(L['args'][0]), 3) + 1, 2) == 0"]

    path = of_exported(network, tmp_path, guard)
    torch.testing.assert_close(load_program(path, "pt2").network(IMAGES), network(IMAGES))


class Writing(torch.nn.Module):
    def forward(self, images):
        torch.save(images, "executed")
        return images.mean((2, 3))


def test_a_script_that_writes_or_reads_files_is_refused(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Writing()).save("writing.ts")
    torch.jit.script(network).save("net.ts")
    with pytest.raises(TeacherError, match=r"writing\.ts is refused: it calls save, which reads or writes files"):
        load_program(Path("writing.ts"), "torchscript")
    rewritten("net.ts", "more.ts", lambda name, content: content)
    with zipfile.ZipFile("more.ts", "a") as archive:
        archive.writestr("net/bytecode.pkl", b"")
    with pytest.raises(TeacherError, match=r"unexpected member 'net/bytecode\.pkl'"):
        load_program(Path("more.ts"), "torchscript")
    rewritten("net.ts", "again.ts", lambda name, content: content)
    torch.testing.assert_close(load_program(Path("again.ts"), "torchscript").network(IMAGES), network(IMAGES))


def onnx_of(tmp_path, name="net.onnx", *, location=None, functions=(), **changes):
    """Write an ONNX file of a flattening and a matrix, whose numbers may be in another file."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((256, 10), np.float32), "weight")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **changes}.items():
            weight.external_data.add(key=key, value=str(value))
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], name="flatten"),
        helper.make_node(changes.get("kind", "MatMul"), ["flat", "weight"], ["y"], name=changes.get("node", "matmul")),
    ]
    shapes: dict[str, list[str | int | None]] = {"x": ["n", 1, 16, 16], "y": ["n", 10]}
    inputs, outputs = ([helper.make_tensor_value_info(key, TensorProto.FLOAT, shapes[key])] for key in ("x", "y"))
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs, [weight]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        functions=list(functions),
    )
    path = tmp_path / "model" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def test_the_weights_of_an_onnx_file_may_be_in_the_same_cache_of_hugging_face(tmp_path):
    cache = tmp_path / "models--me--net"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "12").write_bytes(torch.ones(256, 10).numpy().tobytes())
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    onnx_of(tmp_path, location="numbers").rename(snapshot / "net.onnx")
    (snapshot / "numbers").symlink_to("../../blobs/12")
    network = load_program(snapshot / "net.onnx", "onnx").network
    torch.testing.assert_close(network(torch.ones(3, 1, 16, 16)), torch.full((3, 10), 256.0))


def test_the_weights_of_an_onnx_file_are_within_its_folder(tmp_path):
    numbers = torch.ones(256, 10).numpy().tobytes()
    path = onnx_of(tmp_path)
    inside = path.parent
    (tmp_path / "outside").write_bytes(numbers)
    (inside / "numbers").write_bytes(bytes(100) + numbers)
    (inside / "link").symlink_to(inside / "numbers")
    (inside / "link_out").symlink_to(tmp_path / "outside")
    (inside / "zero").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe")
    for location in ("numbers", "link", "./numbers"):
        path = onnx_of(tmp_path, location=location, offset=100, length=len(numbers))
        torch.testing.assert_close(
            load_program(path, "onnx").network(torch.ones(3, 1, 16, 16)), torch.full((3, 10), 256.0)
        )
        assert program_files(path) == [path, (inside / "numbers").resolve()]
    for changes, message in (
        ({"location": "../outside"}, "not a path within its folder"),
        ({"location": str(tmp_path / "outside")}, "not a path within its folder"),
        ({"location": ""}, "not a path within its folder"),
        ({"location": "link_out"}, "a link to another folder"),
        ({"location": "zero"}, "a link to another folder"),
        ({"location": "pipe"}, "no regular file"),
        ({"location": "."}, "no regular file"),
        ({"location": "nowhere"}, "missing"),
        ({"location": "numbers", "offset": 10**12}, "fewer than the file says"),
        ({"location": "numbers", "offset": -1}, "fewer than the file says"),
        ({"location": "numbers", "offset": "x"}, "fewer than the file says"),
        ({"location": "numbers", "length": 10**12}, "fewer than the file says"),
        ({"location": "numbers", "length": 8}, "8 bytes in numbers and 10,240 by their shape"),
    ):
        path = onnx_of(tmp_path, **changes)
        with pytest.raises(TeacherError, match=message):
            load_program(path, "onnx")


def test_the_names_of_an_onnx_file_become_no_code(tmp_path, monkeypatch):
    from onnx import helper

    monkeypatch.chdir(tmp_path)
    payload = 'x", None) or getattr(__import__("pathlib"), "Path")("executed") or getattr(self, "matmul'
    for name in (payload, "a\\", "a\nb"):
        with pytest.raises(TeacherError, match="is no name of an operation"):
            load_program(onnx_of(tmp_path, node=name), "onnx")
    parts = (["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    for name in ("Flatten", "MatMul"):
        with pytest.raises(TeacherError, match=f"onnx2torch cannot convert: its own {name}"):
            load_program(onnx_of(tmp_path, functions=[helper.make_function("", name, *parts)]), "onnx")
    with pytest.raises(TeacherError, match="onnx2torch cannot convert"):
        load_program(onnx_of(tmp_path, kind="Foreign"), "onnx")
    assert load_program(onnx_of(tmp_path, node="a/b.c[0]:d e"), "onnx").network(IMAGES).shape == (5, 10)


def test_weights_in_an_archive_of_two_meanings_are_refused(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    assert read_state(tmp_path / "w.pth").state["a"].tolist() == [1, 1]
    for name, changed in (
        ("before", b"#!/bin/sh\n" + content),
        ("after", content + b"more"),
        ("two", content + content),
    ):
        (tmp_path / f"{name}.pth").write_bytes(changed)
        with pytest.raises(TeacherError, match=f"{name}.pth is not a complete file of torch.save: th"):
            read_state(tmp_path / f"{name}.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr("w/code/more.py", b"")
    with pytest.raises(TeacherError, match=r"unexpected member 'w/code/more\.py'"):
        read_state(tmp_path / "w.pth")
