from typing import Any

import pytest

from dfkd_core.data.datasets import DataConfig
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.errors import ConfigError
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.soft_target import SoftTargetConfig
from dfkd_core.teachers.training import TeacherConfig
from dfkd_flows.settings.params import Params


def test_a_pruned_start_that_is_none_is_found_before_anything_runs():
    with pytest.raises(ConfigError, match=r"the student has no bn1;.*set distillation\.start: random"):
        Params(
            teacher=TeacherConfig(network="resnet18"),
            distillation=DistillationConfig(student="lenet5_half", start="pruned"),
        )
    allowed: list[dict[str, Any]] = [
        {"start": "random"},
        {"start": "auto"},
        {"start": "pruned"},
        {"student": "resnet18_half", "start": "pruned"},
    ]
    for settings in allowed:
        Params(teacher=TeacherConfig(network="resnet18"), distillation=DistillationConfig(**settings))


def test_a_teacher_to_be_trained_needs_a_training_split():
    for name in ("folder:x", "file:x.npz", "none"):
        with pytest.raises(ConfigError, match="teacher training needs a built-in data set or torchvision:NAME"):
            Params(data=DataConfig(dataset=name))
        trained = Params(data=DataConfig(dataset=name), teacher=TeacherConfig(dataset="digits"))
        assert trained.training_data == DataConfig(dataset="digits")
    assert Params(data=DataConfig(dataset="torchvision:SVHN")).training_data.dataset == "torchvision:SVHN"
    with pytest.raises(ConfigError, match="teacher training needs"):
        Params(teacher=TeacherConfig(dataset="none"))
    with pytest.raises(ConfigError, match="dataset must be one of"):
        TeacherConfig(dataset="imagenet")


def test_the_order_of_the_classes_is_for_evaluation_alone():
    assert Params(data=DataConfig(class_order=(1, 0))).training_data == DataConfig()


def test_without_real_images_the_held_out_prior_is_not_trained_on():
    synthesis = SynthesisConfig(
        methods=MethodSettings(soft_target=SoftTargetConfig(refinement=RefinementConfig(prior="mosaic")))
    )
    Params(synthesis=synthesis)
    with pytest.raises(ConfigError, match=r"set synthesis\.methods\.soft_target\.refinement\.prior to another"):
        Params(data=DataConfig(dataset="none"), teacher=TeacherConfig(dataset="digits"), synthesis=synthesis)


@pytest.mark.parametrize("start", ["random", "pruned"])
def test_an_image_size_that_a_network_rejects_is_found_before_anything_runs(start):
    with pytest.raises(ConfigError, match=r"32x32 pixels or more, got 28x28\. Set data\.image_size"):
        Params(data=DataConfig(image_size=28), distillation=DistillationConfig(start=start))
