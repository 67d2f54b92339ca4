import pytest

from dfkd_core.config import Params
from dfkd_core.data import DataConfig
from dfkd_core.distillation import DistillationConfig
from dfkd_core.errors import ConfigError
from dfkd_core.training import TeacherConfig


def test_a_pruned_start_that_is_none_is_found_before_anything_runs():
    with pytest.raises(ConfigError, match=r"the student has no bn1;.*set distillation\.start: random"):
        Params(teacher=TeacherConfig(network="resnet18"))
    Params(teacher=TeacherConfig(network="resnet18"), distillation=DistillationConfig(start="random"))
    Params(teacher=TeacherConfig(network="resnet18"), distillation=DistillationConfig(student="resnet18_half"))


@pytest.mark.parametrize("start", ["random", "pruned"])
def test_an_image_size_that_a_network_rejects_is_found_before_anything_runs(start):
    with pytest.raises(ConfigError, match=r"32x32 pixels or more, got 28x28\. Set data\.image_size"):
        Params(data=DataConfig(image_size=28), distillation=DistillationConfig(start=start))
