"""Teachers that a loader easily misreads: each is loaded as it is, or refused in one sentence."""

import argparse
import pathlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.models.storage import load_model
from dfkd_core.models.storage import save_model as store
from dfkd_core.teachers.loading import WARNING, bring_module, bring_teacher, source_files
from dfkd_core.teachers.source import SourceConfig

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    """Make the fixtures importable, as a user's own package is."""
    monkeypatch.syspath_prepend(str(FIXTURES))
    sys.modules.pop("odd_nets", None)
    import odd_nets

    torch.manual_seed(0)
    return odd_nets


def bring(tmp_path, trusted="", **settings):
    return bring_teacher(SourceConfig(**settings), scratch=tmp_path, trusted_factories=[trusted])


def stored_and_loaded(classifier, tmp_path):
    store(tmp_path / "stored", classifier)
    return load_model(tmp_path / "stored", trusted_factories=[classifier.card.network])


def weights_of(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize(("name", "channels"), [("Coordinates", 3), ("Focus", 3), ("DepthwiseFirst", 3), ("Small", 1)])
def test_the_first_kernel_does_not_decide_the_channels(odd, tmp_path, name, channels, is_given):
    network = getattr(odd, name)().eval()
    given = {"in_channels": channels, "image_size": 16} if is_given else {}
    brought = bring(tmp_path, model=f"odd_nets:{name}", weights=weights_of(network, tmp_path), **given)
    assert brought.classifier.card.in_channels == channels
    images = torch.rand(2, *brought.classifier.card.image_shape)
    torch.testing.assert_close(brought.classifier(images), network(images))
    in_memory = bring_module(network, SourceConfig(**given))
    assert in_memory.classifier.card.in_channels == channels
    torch.testing.assert_close(stored_and_loaded(brought.classifier, tmp_path)(images), network(images))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Small", {"in_channels": 3}, "with in_channels 1, and teacher.source has in_channels 3"),
        ("Focus", {"in_channels": 12}, r"rejects float images of shape \(12, "),
        ("Small", {"num_classes": 7}, "with num_classes 10, and teacher.source has num_classes 7"),
        ("Viewed", {"image_size": 96}, r"returns shape \(8, 7\) for 2 images of 1x96x96"),
        ("TwoParts", {"num_classes": 7, "arguments": {"num_classes": 10}}, r"has 10 outputs and .*num_classes is 7"),
        ("Small", {"outputs": "probabilities"}, r"outputs is probabilities, and the network returns numbers from -"),
        ("Small", {"outputs": "binary_logit"}, r"outputs is binary_logit, and the network returns shape \(16, 10\)"),
        ("OneLogit", {"outputs": "logits"}, r"outputs is logits, and the network returns shape \(16, 1\)"),
        ("OneLogit", {"num_classes": 3}, "with num_classes 2, and teacher.source has num_classes 3"),
        ("Small", {"image_size": 10**9}, r"Images of 1x1000000000x1000000000 have more than 16,777,216 numbers"),
    ],
)
def test_a_setting_is_not_overruled(odd, tmp_path, name, settings, message):
    path = weights_of(getattr(odd, name)(), tmp_path)
    with pytest.raises(TeacherError, match=message):
        bring(tmp_path, model=f"odd_nets:{name}", weights=path, **settings)


def test_a_factory_keeps_its_own_default(odd, tmp_path):
    for form in ("odd_nets:of_seven", "odd_nets.of_seven"):
        assert bring(tmp_path, model=form).classifier.card.num_classes == 7
    assert bring(tmp_path, model="odd_nets:of_seven", class_names=("a", "b")).classifier.card.num_classes == 2
    assert bring(tmp_path, model="odd_nets:Coordinates").classifier.card.in_channels == 3


def test_settings_that_contradict_a_stored_model_are_refused(odd, tmp_path):
    store(tmp_path / "stored", bring(tmp_path, model="odd_nets:Small", image_size=16, mean=0.5).classifier)
    stored, trusted = str(tmp_path / "stored"), "odd_nets:Small"
    assert bring(tmp_path, trusted, model=stored, image_size=16, mean=(0.5,)).classifier.card.image_size == 16
    for name, value, message in (
        ("image_size", 28, r"image_size is 28, and .*config\.json has 16"),
        ("num_classes", 7, r"num_classes is 7, and .*has 10"),
        ("std", 0.2, r"std is \(0\.2,\), and .*has \(1\.0,\)"),
        ("outputs", "probabilities", r"outputs is 'probabilities', and .*has 'logits'"),
    ):
        with pytest.raises(TeacherError, match=message):
            bring(tmp_path, trusted, model=stored, **{name: value})
    with pytest.raises(ConfigError, match=r"leave out teacher\.source\.weights and teacher\.source\.arguments"):
        bring(tmp_path, trusted, model=stored, weights="w.pt", arguments={"width": 3})


def test_classes_follow_the_network_and_not_the_last_matrix_of_the_file(odd, tmp_path):
    state = {f"model.{name}": tensor for name, tensor in odd.Small().state_dict().items()}
    state |= {"projector.weight": torch.zeros(128, 8), "val_confusion.confmat": torch.zeros(7, 7)}
    torch.save({"state_dict": state, "epoch": 4}, tmp_path / "a.ckpt")
    card = bring(tmp_path, model="odd_nets:Small", weights=str(tmp_path / "a.ckpt")).classifier.card
    assert card.num_classes == 10
    for classes in (10, 7):
        path = weights_of(odd.HeadFirst(classes), tmp_path)
        assert bring(tmp_path, model="odd_nets:HeadFirst", weights=path).classifier.card.num_classes == classes


def test_a_size_works_only_if_it_returns_one_row_for_each_image(odd, tmp_path):
    path = weights_of(odd.Viewed(), tmp_path)
    brought = bring(tmp_path, model="odd_nets:Viewed", weights=path)
    assert brought.classifier.card.image_size == 48
    assert any("input size: 48 pixels assumed" in note for note in brought.notes)


def test_an_answer_without_the_dimension_of_the_images_is_found_at_once(odd):
    with pytest.raises(
        TeacherError, match=r"shape \(10,\) for one image of 1x16x16, without the dimension of the images"
    ):
        bring_module(odd.Squeezed(), SourceConfig(in_channels=1, image_size=16))


def test_a_single_logit_may_lose_it(odd):
    classifier = bring_module(odd.FlatLogit(), SourceConfig(in_channels=1, image_size=16)).classifier
    assert classifier(torch.rand(1, 1, 16, 16)).shape == (1, 2)


def test_one_logit_for_two_classes_is_built_again(odd, tmp_path):
    path = weights_of(odd.OneLogit(), tmp_path)
    for given in ({}, {"num_classes": 1}):
        brought = bring(tmp_path, model="odd_nets:OneLogit", weights=path, image_size=16, **given)
        assert brought.classifier.card.num_classes == 2
        images = torch.rand(3, 1, 16, 16)
        loaded = stored_and_loaded(brought.classifier, tmp_path)
        torch.testing.assert_close(loaded(images), brought.classifier(images))


def test_options_next_to_the_weights_are_not_unpickled(odd, tmp_path):
    beside = {"args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/1")), "best_acc1": np.float64(0.91)}
    torch.save({"model": odd.Small().state_dict(), **beside}, tmp_path / "last.pth")
    for trusts in (False, True):
        brought = bring(tmp_path, model="odd_nets:Small", weights=str(tmp_path / "last.pth"), trust_pickle=trusts)
        assert any("not read: argparse.Namespace" in note for note in brought.notes)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_inside_names_and_counters_of_profilers_are_understood(odd, tmp_path, wrapper):
    state = {name.replace("backbone.", f"backbone.{wrapper}."): t for name, t in odd.TwoParts().state_dict().items()}
    state |= {f"{part}total_ops": torch.zeros(1, dtype=torch.float64) for part in ("", "backbone.", "head.")}
    torch.save(state, tmp_path / "w.pth")
    assert bring(tmp_path, model="odd_nets:TwoParts", weights=str(tmp_path / "w.pth")).classifier.card.num_classes == 10


def test_a_tensor_that_safetensors_stores_once_has_both_names(odd, tmp_path):
    network = odd.Tied().eval()
    save_model(network, tmp_path / "w.safetensors")
    classifier = bring(tmp_path, model="odd_nets:Tied", weights=str(tmp_path / "w.safetensors")).classifier
    images = torch.rand(2, *classifier.card.image_shape)
    torch.testing.assert_close(classifier(images), network(images))


def test_lazy_layers_get_their_shapes(odd, tmp_path):
    network = odd.Lazy().eval()
    network(torch.zeros(2, 1, 16, 16))
    path = weights_of(network, tmp_path)
    classifier = bring(tmp_path, model="odd_nets:Lazy", weights=path, image_size=16).classifier
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(classifier(images), network(images))
    torch.testing.assert_close(stored_and_loaded(classifier, tmp_path)(images), network(images))
    with pytest.raises(TeacherError, match=r"lazy layers.*Set teacher\.source\.in_channels and image_size"):
        bring_module(odd.Lazy())
    assert bring_module(odd.Lazy(), SourceConfig(in_channels=3, image_size=8)).classifier.card.image_shape == (3, 8, 8)


def test_a_line_to_copy_renames_the_weights(odd, tmp_path):
    state = {name.replace("head.", "classifier.fc."): t for name, t in odd.TwoParts().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    settings = {"model": "odd_nets:TwoParts", "weights": str(tmp_path / "w.pth")}
    with pytest.raises(TeacherError) as error:
        bring(tmp_path, **settings)
    line = '--set \'teacher.source.rename={"^classifier.fc.": "head."}\''
    assert str(error.value).endswith(f"If only the names differ: {line}")
    assert bring(tmp_path, **settings, rename={"^classifier.fc.": "head."}).classifier.card.num_classes == 10


def test_one_of_several_files_is_named_as_such(odd, tmp_path):
    part = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"conv.weight": torch.zeros(8, 1, 3, 3)}, part)
    with pytest.raises(TeacherError, match=r"one of several: name their index, which ends in \.index\.json"):
        bring(tmp_path, model="odd_nets:Small", weights=str(part))


def test_the_digest_covers_all_files_of_an_index(odd, tmp_path):
    save_file(odd.Small().state_dict(), tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    names = ", ".join(f'"{name}": "part.safetensors"' for name in odd.Small().state_dict())
    index.write_text(f'{{"weight_map": {{{names}}}}}')
    config = SourceConfig(model="odd_nets:Small", weights=str(index))
    assert {"weights/part.safetensors", f"weights/{index.name}"} < set(source_files(config))
    assert bring(tmp_path, model="odd_nets:Small", weights=str(index)).classifier.card.num_classes == 10


def test_a_program_is_not_taken_for_weights(odd, tmp_path):
    torch.jit.trace(odd.Small(), torch.zeros(1, 1, 16, 16)).save(str(tmp_path / "net.pt"))
    with pytest.raises(TeacherError, match=r"is a program \(torchscript\).*Name it as --teacher"):
        bring(tmp_path, model="odd_nets:Small", weights=str(tmp_path / "net.pt"))


def test_a_sigmoid_per_class_is_taken_for_what_it_is(odd, tmp_path):
    network = odd.OneVersusRest().eval()
    brought = bring(tmp_path, model="odd_nets:OneVersusRest", weights=weights_of(network, tmp_path), image_size=16)
    assert brought.classifier.card.outputs == "sigmoids"
    assert any(note.startswith("one sigmoid per class") for note in brought.notes)
    images = torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(brought.classifier(images).sigmoid(), network(images))
    as_logits = bring_module(network, SourceConfig(in_channels=1, image_size=16, outputs="logits")).classifier
    torch.testing.assert_close(as_logits(images), network(images))


def test_vectors_of_length_one_are_an_embedding(odd):
    with pytest.raises(TeacherError, match=r"vectors of length 1 with 10 numbers: an embedding.*one score per class"):
        bring_module(odd.Metric(), SourceConfig(in_channels=1, image_size=16))
    given = SourceConfig(in_channels=1, image_size=16, outputs="logits")
    assert bring_module(odd.Metric(), given).classifier.card.outputs == "logits"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Counting", r"pass in eval mode changes the teacher's own tensors \(passes\)"),
        ("WithExtraState", r"holds values that are not tensors \(_extra_state: dict\)"),
        ("Wordless", r"returns shape \(2, 0\), which holds no numbers"),
        ("Strange", r"rejects float images of shape \(1, 16, 16\): KeyError: 'stage'"),
    ],
)
def test_a_network_that_cannot_be_stored_or_used_is_one_sentence(odd, tmp_path, name, message):
    network = getattr(odd, name)()
    with pytest.raises(TeacherError, match=message):
        bring_module(network, SourceConfig(in_channels=1, image_size=16))
    with pytest.raises(TeacherError, match=message):
        bring(tmp_path, model=f"odd_nets:{name}", weights=weights_of(network, tmp_path), image_size=16)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("unused", r"Layer 'unused' does not run"),
        ("head", r"Layer 'head' does not run"),
        ("nothing", r"No layer 'nothing'"),
    ],
)
def test_a_layer_that_a_pass_does_not_call_is_refused_when_the_teacher_is_loaded(odd, layer, message):
    with pytest.raises(TeacherError, match=message):
        bring_module(odd.Bypassed(), SourceConfig(in_channels=1, image_size=16), layer=layer)


@pytest.mark.parametrize("how", [weight_norm, spectral_norm])
def test_a_head_whose_weight_is_computed_is_modelled_at_its_input(odd, how):
    network = odd.Small()
    network.conv, network.fc = how(network.conv), how(network.fc)
    assert bring_module(network, SourceConfig(in_channels=1, image_size=16)).classifier.card.layer == "fc:input"


def test_other_precisions_become_float32(odd, tmp_path):
    network = odd.in_double().eval()
    brought = bring_module(network, SourceConfig(in_channels=1, image_size=16))
    assert next(network.parameters()).dtype == torch.float64
    images = torch.rand(2, 1, 16, 16)
    assert brought.classifier(images).dtype == torch.float32
    torch.testing.assert_close(brought.classifier(images), network(images.double()).float(), rtol=1e-4, atol=1e-4)
    by_name = bring(tmp_path, model="odd_nets:in_double", weights=weights_of(network, tmp_path), image_size=16)
    torch.testing.assert_close(by_name.classifier(images), brought.classifier(images))
    halved = bring_module(odd.Halved(), SourceConfig(in_channels=1, image_size=16)).classifier
    assert halved(images).dtype == torch.float32


def test_weights_drawn_at_random_are_a_warning_and_own_ones_are_not(tmp_path):
    assert bring(tmp_path, model="odd_nets:Small").notes[0].startswith(WARNING)
    assert bring(tmp_path, model="lenet5").notes[0].startswith(WARNING)
    notes = bring(tmp_path, model="odd_nets:with_own_weights").notes
    assert not any(note.startswith(WARNING) for note in notes)


def test_one_number_is_the_mean_of_all_channels(tmp_path):
    card = bring(tmp_path, model="odd_nets:Coordinates", mean=0.5, std=[0.25]).classifier.card
    assert (card.mean, card.std) == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match="got 3 for 1 channels"):
        bring(tmp_path, model="odd_nets:Tied", image_size=16, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="got 2 for 3 channels"):
        bring(tmp_path, model="odd_nets:Coordinates", mean=(0.5, 0.5))


def test_sources_that_are_none_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.onnx").write_bytes(b"not onnx")
    (tmp_path / "empty.pt").write_bytes(b"")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    for model, message in (
        (str(tmp_path / "empty"), r"The folder .*empty has no config\.json of dfkd; it has: nothing\. Name the arch"),
        (str(tmp_path), r"it has: broken\.onnx, empty, empty\.pt, w\.safetensors"),
        (str(tmp_path / "missing.onnx"), r"There is no file or folder .*missing\.onnx"),
        (str(tmp_path / "broken.onnx"), r"broken\.onnx (is not an ONNX file|cannot be read as onnx)"),
        (str(tmp_path / "empty.pt"), r"empty\.pt is not a complete file"),
        (str(tmp_path / "w.safetensors"), "holds weights and no network"),
        ("timm:no_such_net", "no_such_net"),
        ("odd_nets:never_built", "cannot be built.*no patches"),
        ("", r"teacher\.source\.model is empty"),
    ):
        with pytest.raises((ConfigError, TeacherError), match=message):
            bring(tmp_path, model=model)


# Without their types, since wrong arguments are what is tested.
MODULE: Any = bring_module
TEACHER: Any = bring_teacher
SOURCE: Any = SourceConfig


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MODULE("lenet5"), r"takes a torch\.nn\.Module, got 'lenet5'.*bring_teacher"),
        (lambda: MODULE(nn.Linear), r"takes a torch\.nn\.Module, got <class"),
        (lambda: MODULE(nn.Flatten(), {"image_size": 8}), "config must be a SourceConfig"),
        (lambda: MODULE(nn.Flatten(), layer=3), "layer must be the address of a layer"),
        (lambda: TEACHER("lenet5", scratch=Path()), "config must be a SourceConfig, got 'lenet5'"),
        (lambda: TEACHER(SOURCE(model="lenet5"), scratch=Path(), image_size_hint=-1), "image_size_hint"),
        (lambda: TEACHER(SOURCE(model="lenet5"), scratch=None), "scratch must be the path of a folder, got None"),
        (lambda: SOURCE(model=Path("net.pt")), r"model must be text, got (Posix|Windows)Path"),
        (lambda: SOURCE(in_channels="3"), "in_channels must be a whole number, got '3'"),
        (lambda: SOURCE(image_size=8.0), r"image_size must be a whole number, got 8\.0"),
        (lambda: SOURCE(mean="0.5"), "mean must be a list of numbers or a number, got '0.5'"),
        (lambda: SOURCE(value_range=(0.0,)), "value_range must be a list of 2 numbers"),
        (lambda: SOURCE(value_range=(0.0, float("inf"))), "must be finite numbers"),
        (lambda: SOURCE(std=(float("nan"),)), "std must be above 0"),
        (lambda: SOURCE(outputs="softmax"), "outputs must be one of 'auto', 'logits'"),
        (lambda: SOURCE(rename={"(": ""}), r"rename must map regular expressions to replacements, got '\('"),
        (lambda: SOURCE(rename={"a": 3}), "rename must be a mapping"),
        (lambda: SOURCE(class_names=[1]), "class_names must be a list of texts"),
        (lambda: SOURCE(trust_pickle=1), "trust_pickle must be true or false, got 1"),
    ],
)
def test_wrong_arguments_are_one_sentence(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
