import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from dfkd_core.models.renaming import fit_weights, rename, renaming_for
from dfkd_core.models.weights import state_faults


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.Linear(4, 3)


def weights():
    torch.manual_seed(0)
    state = Net().state_dict()
    return {name: torch.randn(t.shape) if t.is_floating_point() else t for name, t in state.items()}


def fits(network, state):
    fitted = fit_weights(network, state)
    assert state_faults(network, fitted.state) == []
    wanted = weights()
    return all(torch.equal(fitted.state[name], wanted[name]) for name in wanted)


def changed(old, new):
    return {name.replace(old, new): tensor for name, tensor in weights().items()}


@pytest.mark.parametrize(
    "wrapper",
    ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_fpw_module"],
)
@pytest.mark.parametrize("place", ["", "backbone.", "backbone.0.", "head."])
def test_names_of_wrappers_are_ignored_anywhere(wrapper, place):
    inside = {
        (name.replace(place, f"{place}{wrapper}.", 1) if place else f"{wrapper}.{name}"): t
        for name, t in weights().items()
    }
    assert fits(Net(), inside)
    assert fits(Net(), {f"model.{name}": tensor for name, tensor in inside.items()})


def test_a_wrapped_network_takes_plain_weights():
    fitted = fit_weights(nn.DataParallel(Net()), weights())
    assert state_faults(nn.DataParallel(Net()), fitted.state) == []


def test_a_network_with_a_part_called_module_keeps_it():
    network = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    state = {name: torch.randn(tensor.shape) for name, tensor in network.state_dict().items()}
    fitted = fit_weights(network, {f"module.{name}": tensor for name, tensor in state.items()}).state
    assert all(torch.equal(fitted[name], state[name]) for name in state)


def test_two_copies_are_not_mixed_up():
    plain, average = weights(), {name: tensor + 1 for name, tensor in weights().items()}
    for order in ((("model.", plain), ("ema_model.module.", average)), (("ema_model.", average), ("model.", plain))):
        assert fits(Net(), {prefix + name: t for prefix, state in order for name, t in state.items()})


def test_parts_of_a_training_are_left_out_and_named():
    beside = {
        "total_ops": torch.zeros(1),
        "backbone.0.total_params": torch.zeros(1),
        "criterion.weight": torch.ones(3),
        "projector.0.weight": torch.zeros(8, 4),
        "val_confusion.confmat": torch.zeros(7, 7),
        "aux_head.weight": torch.zeros(3, 4),
    }
    state = weights() | beside
    assert fits(Net(), state)
    named = ("aux_head.weight", "criterion.weight", "projector.0.weight", "val_confusion.confmat")
    assert fit_weights(Net(), state).left_out == named


def test_more_layers_than_the_network_has_are_a_fault():
    state = weights() | {"head2.weight": torch.zeros(3, 3)}
    assert state_faults(Net(), fit_weights(Net(), state).state) == ["unexpected: head2.weight"]


def test_a_tensor_under_two_names_may_be_stored_once():
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    network["b"] = network["a"]
    state = {name: torch.randn(t.shape) for name, t in network.state_dict().items() if not name.startswith("b.")}
    fitted = fit_weights(network, state).state
    assert state_faults(network, fitted) == []
    assert torch.equal(fitted["b.weight"], state["a.weight"])
    del state["c.bias"]
    assert state_faults(network, fit_weights(network, state).state) == ["missing: c.bias"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("new", "old"), [(weight_norm, nn.utils.weight_norm), (spectral_norm, nn.utils.spectral_norm)])
def test_old_names_of_parametrisations_are_those_of_the_new_ones(new, old):
    network = nn.Sequential(new(nn.Linear(3, 2)))
    state = nn.Sequential(old(nn.Linear(3, 2))).state_dict()
    fitted = fit_weights(network, state).state
    assert state_faults(network, fitted) == []
    network.load_state_dict(fitted)


def test_tensors_without_names_are_assigned_in_order_only_if_they_fit():
    tensors = list(weights().values())
    assert fits(Net(), {str(position): tensor for position, tensor in enumerate(tensors)})
    swapped = {str(position): tensor for position, tensor in enumerate(reversed(tensors))}
    assert state_faults(Net(), fit_weights(Net(), swapped).state) != []


def test_rules_rename_in_order_and_drop():
    state = {"net.0.weight": torch.zeros(1), "loss.scale": torch.zeros(1)}
    assert list(rename(state, {"^net.": "body.", r"body\.(\d)": r"layer\1", "^loss.*": ""})) == ["layer0.weight"]


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ("backbone.", "encoder.body.", {"^encoder.body.": "backbone."}),
        ("head.", "classifier.", {"^classifier.": "head."}),
        ("backbone.", "", {"^0.": "backbone.0.", "^1.": "backbone.1."}),
    ],
)
def test_an_obvious_renaming_is_proposed(old, new, rules):
    state = changed(old, new)
    assert renaming_for(Net(), state) == rules
    assert fits(Net(), rename(state, rules))
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    assert fits(Net(), rename(wrapped, renaming_for(Net(), wrapped)))


def test_parts_of_a_framework_around_a_plain_network_are_removed():
    plain = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3), "fc": nn.Linear(2, 3)})
    state = {("head." if name.startswith("fc") else "backbone.") + name: t for name, t in plain.state_dict().items()}
    rules = {"^backbone.": "", "^head.": ""}
    assert renaming_for(plain, state) == rules
    assert state_faults(plain, fit_weights(plain, rename(state, rules)).state) == []


def test_nothing_is_proposed_for_another_network():
    other = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).state_dict()
    assert renaming_for(Net(), other) == {}
    assert renaming_for(Net(), weights() | {"more.weight": torch.zeros(2)}) == {"^more.*": ""}
