import dataclasses

import pytest
import torch
from torch import nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.3,), layer="fc1")


def make_teacher(**changes):
    return Teacher(build_classifier(dataclasses.replace(CARD, **changes), seed=0))


def test_features_pushed_through_the_rest_give_the_logits():
    for layer in ("fc1", "act_fc1"):
        teacher = make_teacher(layer=layer)
        logits, features = teacher.forward_with_features(torch.rand(5, 1, 32, 32))
        assert features.shape == (5, 84) == (5, teacher.num_features)
        torch.testing.assert_close(teacher.rest(features), logits)


def test_the_rest_after_a_linear_layer_is_relu_and_the_last_layer():
    teacher = make_teacher()
    network = teacher.classifier.network
    features = torch.randn(7, 84)
    expected = network.fc2(torch.relu(features))
    torch.testing.assert_close(teacher.rest(features), expected)
    torch.testing.assert_close(make_teacher(layer="act_fc1").rest(features), network.fc2(features))


def test_gradients_reach_the_image_and_no_weight():
    teacher = make_teacher()
    images = torch.rand(2, 1, 32, 32, requires_grad=True)
    teacher(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.classifier.parameters())


def test_layer_weights_of_both_sides():
    for layer in ("fc1", "act_fc1"):
        teacher = make_teacher(layer=layer)
        network = teacher.classifier.network
        assert torch.equal(teacher.layer_weights("incoming"), network.fc1.weight)
        assert torch.equal(teacher.layer_weights("outgoing"), network.fc2.weight.T)
        assert torch.equal(teacher.layer_bias(), network.fc1.bias)


def test_pooled_features_of_a_resnet():
    card = ModelCard(
        network="resnet18", in_channels=3, image_size=32, num_classes=4, mean=(0.5,) * 3, std=(0.5,) * 3, layer="pool"
    )
    teacher = Teacher(build_classifier(card, seed=0))
    logits, features = teacher.forward_with_features(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(teacher.rest(features), logits)
    assert teacher.layer_weights("outgoing").shape == (512, 4)
    assert teacher.layer_weights("incoming").shape[0] == 512
    mean, std = teacher.layer_batch_norm_moments()
    # a fresh BatchNorm gives N(0, 1); rectified: mean 1/sqrt(2 pi), variance 1/2 - 1/(2 pi)
    torch.testing.assert_close(mean, torch.full((512,), 0.39894), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.full((512,), 0.58381), atol=1e-4, rtol=0)


def test_batch_norm_after_the_layer_gives_its_running_moments():
    teacher_classifier = build_classifier(dataclasses.replace(CARD, network="lenet5_bn"), seed=0)
    norms = [m for m in teacher_classifier.network.modules() if isinstance(m, nn.BatchNorm1d)]
    norms[-1].running_mean.normal_()
    norms[-1].running_var.uniform_(1, 2)
    mean, std = Teacher(teacher_classifier).layer_batch_norm_moments()
    torch.testing.assert_close(mean, norms[-1].running_mean, rtol=0, atol=0)
    torch.testing.assert_close(std**2, norms[-1].running_var)


def test_without_batch_norm_the_error_names_what_to_use():
    with pytest.raises(TeacherError, match=r"statistics\.source: weights or probes"):
        make_teacher().layer_batch_norm_moments()


def test_a_wrong_layer_path_lists_the_valid_ones():
    with pytest.raises(TeacherError, match=r"No layer 'fc7'.*conv1.*fc1.*fc2.*dfkd layers"):
        make_teacher(layer="fc7")


def test_wrong_number_of_classes():
    classifier = build_classifier(CARD, seed=0)
    classifier.card = dataclasses.replace(CARD, num_classes=7)
    with pytest.raises(TeacherError, match=r"\(2, 10\).*num_classes = 7"):
        Teacher(classifier)


def test_weights_that_are_not_finite():
    classifier = build_classifier(CARD, seed=0)
    classifier.network.get_parameter("fc1.weight").data[0, 0] = float("inf")
    with pytest.raises(TeacherError, match=r"NaN or Inf: fc1\.weight"):
        Teacher(classifier)


def test_an_image_size_that_the_network_rejects():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(16, 3)

        def forward(self, images):
            return self.fc(images.flatten(1))

    card = ModelCard(network="own", in_channels=1, image_size=5, num_classes=3, mean=(0.0,), std=(1.0,), layer="fc")
    with pytest.raises(TeacherError, match=r"rejects images of shape \(1, 5, 5\)"):
        Teacher(Classifier(Fixed(), card))


def test_features_of_a_layer_with_positions_are_averaged_but_not_pushed_on():
    teacher = make_teacher(layer="conv1")
    assert teacher.forward_with_features(torch.rand(2, 1, 32, 32))[1].shape == (2, 6)
    with pytest.raises(TeacherError, match=r"output \(6, 28, 28\)"):
        teacher.rest(torch.rand(2, 6))


def test_hooks_are_removed():
    teacher = make_teacher()
    teacher.forward_with_features(torch.rand(2, 1, 32, 32))
    teacher.rest(torch.rand(2, 84))
    assert not any(module._forward_hooks for module in teacher.classifier.modules())


def test_the_teacher_is_in_eval_mode_and_its_digest_follows_the_weights():
    classifier = build_classifier(CARD, seed=0).train()
    teacher = Teacher(classifier)
    assert not classifier.training
    assert teacher.digest == make_teacher().digest != make_teacher(mean=(0.4,)).digest
