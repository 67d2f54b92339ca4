import pytest

from dfkd_core.data.datasets import DataConfig
from dfkd_core.teachers.training import TeacherConfig
from dfkd_flows.run.table import heading
from dfkd_flows.settings.params import Params


def params(dataset: str) -> Params:
    return Params(data=DataConfig(dataset=dataset), teacher=TeacherConfig(dataset="digits"))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("fashion_mnist", "dfkd-student-fashion-mnist"),
        ("torchvision:SVHN", "dfkd-student-torchvision-SVHN"),
        ("folder:/data/val set/", "dfkd-student-folder-data-val-set"),
        ("file:a/x.npz", "dfkd-student-file-a-x.npz"),
        ("none", "dfkd-student-proxy-0123abcd"),
    ],
)
def test_model_name__is_one_per_data_set_and_without_data_per_teacher(dataset: str, name: str) -> None:
    assert params(dataset).model_name("0123abcdef") == name


@pytest.mark.parametrize(
    ("dataset", "short"),
    [
        ("fashion_mnist", "fashion_mnist"),
        ("torchvision:SVHN", "SVHN"),
        ("folder:/data/imagenet/val", "val"),
        ("file:a/x.npz", "x"),
        ("folder:/data/a_name_that_fills_the_column", "a_name_that_fills_..."),
        ("none", "no real images"),
    ],
)
def test_heading__fits_into_its_column(dataset: str, short: str) -> None:
    assert heading(dataset) == short
    assert len(short) <= 21
