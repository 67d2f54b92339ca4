import pytest
import torch

from dfkd_core.common.least_squares import fit_linear
from dfkd_core.distillation.feature_matching import FeatureMatcher, normalised_mse
from dfkd_core.models.built_in import default_layer
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.layers import forward_with_outputs
from dfkd_core.models.teacher import Teacher


def make(network, *, layer="", image_size=32, seed=0):
    card = ModelCard(
        network=network,
        in_channels=1,
        image_size=image_size,
        num_classes=3,
        mean=(0.3,),
        std=(0.3,),
        layer=layer or default_layer(network),
    )
    return build_classifier(card, seed=seed)


def match(teacher, student, *, layer="", image_size=32):
    teacher = Teacher(make(teacher, layer=layer, image_size=image_size))
    student = make(student, image_size=image_size, seed=1)
    return FeatureMatcher(teacher, student, seed=0), teacher, student


def outputs(matcher, teacher, student, images):
    _, hints = forward_with_outputs(teacher.classifier, matcher.teacher_paths, images)
    _, own = forward_with_outputs(student.eval(), matcher.student_paths, images)
    return own, hints


def test_normalised_mse__is_the_formula_and_has_no_scale():
    teacher = torch.tensor([[1.0, 4.0], [3.0, 0.0]])
    student = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    # Differences 0, 1, 1, 2; deviations from the columns' means 2 and 2: 1, 2, 1, 2.
    assert normalised_mse(student, teacher).item() == pytest.approx((6 / 4) / (10 / 4))
    assert normalised_mse(50 * student, 50 * teacher).item() == pytest.approx(0.6)
    assert normalised_mse(teacher.mean(0).expand(2, 2), teacher).item() == pytest.approx(1)


@pytest.mark.parametrize("teacher", [torch.zeros(4, 3), torch.full((3, 2), 0.1), torch.randn(1, 5)])
def test_normalised_mse__outputs_without_spread_count_nothing(teacher):
    student = torch.randn(teacher.shape, requires_grad=True)
    loss = normalised_mse(student, teacher)
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=0)


def test_normalised_mse__a_teacher_of_nan_is_not_hidden():
    assert normalised_mse(torch.zeros(2, 2), torch.tensor([[torch.nan, 1], [2, 3]])).isnan()


@pytest.mark.parametrize(
    ("networks", "teacher_paths"),
    [
        (("lenet5", "lenet5_half"), ("fc1", "conv3")),
        (("lenet5_bn", "lenet5_half_bn"), ("fc1", "conv3")),
        (("lenet5", "lenet5"), ("fc1", "conv1", "conv2", "conv3")),
        (("alexnet", "alexnet_half"), ("fc2",)),
        (("resnet34", "resnet18"), ("pool", "conv1", "layer1", "layer2", "layer3", "layer4")),
    ],
)
def test_matched_layers__are_the_modelled_one_and_the_steps_of_one_shape_without_the_logits(networks, teacher_paths):
    matcher, _, _ = match(*networks)
    assert matcher.teacher_paths == matcher.student_paths == teacher_paths
    assert (matcher.projection is None) == (networks[0] != "alexnet")


def test_modelled_layer__is_the_students_own_where_it_lacks_the_teachers():
    assert match("lenet5", "lenet5_half", layer="act_fc1")[0].student_paths == ("act_fc1", "conv3", "fc1")
    matcher, teacher, student = match("resnet18_quarter", "lenet5")
    assert (matcher.teacher_paths, matcher.student_paths) == (("pool",), ("fc1",))
    assert matcher.projection.weight.shape == (128, 84)
    assert matcher(*outputs(matcher, teacher, student, torch.rand(4, 1, 32, 32))).isfinite()


def test_matcher__is_the_mean_over_layers():
    matcher, teacher, student = match("lenet5", "lenet5_half")
    own, hints = outputs(matcher, teacher, student, torch.rand(6, 1, 32, 32))
    expected = sum(normalised_mse(s, t) for s, t in zip(own, hints)) / 2
    torch.testing.assert_close(matcher(own, hints), expected)


def test_matcher__a_layer_with_other_widths_is_compared_by_units_through_the_projection():
    matcher, teacher, student = match("lenet5", "lenet5_half", layer="conv2")
    student_outputs, teacher_outputs = outputs(matcher, teacher, student, torch.rand(6, 1, 32, 32))
    own, hints = list(student_outputs), list(teacher_outputs)
    assert (own[0].shape, hints[0].shape) == ((6, 8, 10, 10), (6, 16, 10, 10))
    own[0], hints[0] = matcher.projection(own[0].mean((2, 3))), hints[0].mean((2, 3))
    expected = sum(normalised_mse(s, t) for s, t in zip(own, hints)) / 3
    torch.testing.assert_close(matcher(student_outputs, teacher_outputs), expected)


def test_matcher__equal_networks_differ_by_nothing():
    teacher = Teacher(make("lenet5"))
    matcher = FeatureMatcher(teacher, make("lenet5"), seed=0)
    own, hints = outputs(matcher, teacher, make("lenet5"), torch.rand(6, 1, 32, 32))
    assert matcher(own, hints).item() == 0


def test_matcher__looking_for_layers_changes_neither_network_nor_the_global_generator():
    teacher, student = Teacher(make("alexnet")), make("alexnet_half").train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    FeatureMatcher(teacher, student, seed=0)
    assert student.training
    assert not teacher.classifier.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in student.modules())


def test_fit_map__is_the_least_squares_map_of_the_units_in_eval_mode():
    matcher, teacher, student = match("lenet5_bn", "lenet5_half_bn", layer="conv2")
    images = torch.randint(0, 256, (1200, 1, 32, 32), dtype=torch.uint8)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.train()
    matcher.fit_map(teacher, student, images)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    own, hints = (found[0].mean((2, 3)) for found in outputs(matcher, teacher, student, images[:1000] / 255))
    weights, bias = fit_linear(own.double(), hints.double(), torch.zeros(16, 8, dtype=torch.float64))
    torch.testing.assert_close(matcher.projection.weight.double(), weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(matcher.projection.bias.double(), bias, rtol=1e-3, atol=1e-4)


def test_fit_map__leaves_a_matcher_without_a_map_as_it_is():
    matcher, teacher, student = match("lenet5", "lenet5_half")
    matcher.fit_map(teacher, student, torch.zeros(4, 1, 32, 32, dtype=torch.uint8))
    assert not list(matcher.parameters())


def test_forward_with_outputs__gives_the_logits_and_what_the_layers_put_out():
    classifier, images = make("lenet5"), torch.rand(3, 1, 32, 32)
    logits, (features, again) = forward_with_outputs(classifier, ["fc1", "fc2"], images)
    assert torch.equal(logits, classifier(images))
    assert torch.equal(again, logits)
    assert torch.equal(classifier.network.fc2(features.relu()), logits)
