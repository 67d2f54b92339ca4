import subprocess
import sys

import pytest
import torch

from dfkd_core.common import vision

# A stand-in for torchvision on a CPU build of torch: its import works only once the operators' schemas are declared.
FAKE_TORCHVISION = {
    "__init__.py": "import torchvision.half_imported\nimport torch\n{check}",
    "half_imported.py": "",
    "datasets.py": "",
    "models.py": "",
    "utils.py": "make_grid = None",
    "transforms/__init__.py": "",
    "transforms/v2/__init__.py": "",
    "transforms/v2/functional.py": "",
}
NEEDS_SCHEMAS = """
for name in ("nms", "qnms"):
    if not torch._C._dispatch_has_kernel(f"torchvision::{name}"):
        try:
            getattr(torch.ops.torchvision, name)
        except AttributeError:
            raise RuntimeError(f"operator torchvision::{name} does not exist") from None
"""


def import_beside(folder, check):
    for name, text in FAKE_TORCHVISION.items():
        path = folder / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{check}", check))
    script = "import torch; from dfkd_core.common import vision; print(hasattr(torch.ops.torchvision, 'nms'))"
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {script}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_transforms_work_on_tensors():
    images = torch.arange(4.0).reshape(1, 1, 2, 2)
    torch.testing.assert_close(vision.functional_v2.horizontal_flip(images), images.flip(-1))
    assert vision.transforms_v2.Resize(4)(images).shape == (1, 1, 4, 4)


def test_make_grid_lays_images_out_in_rows():
    grid = vision.make_grid(torch.ones(4, 1, 3, 3), nrow=2, padding=1)
    assert grid.shape == (3, 2 * 4 + 1, 2 * 4 + 1)


def test_datasets_name_their_files():
    names = [name for name, _ in vision.datasets.FashionMNIST.resources]
    assert "train-images-idx3-ubyte.gz" in names


@pytest.mark.slow
def test_missing_operators_are_declared(tmp_path):
    result = import_beside(tmp_path, NEEDS_SCHEMAS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"


@pytest.mark.slow
def test_nothing_is_declared_where_the_import_works(tmp_path):
    result = import_beside(tmp_path, "")
    assert (result.returncode, result.stdout.strip()) == (0, "False"), result.stderr


@pytest.mark.slow
def test_another_error_of_the_import_is_passed_on(tmp_path):
    result = import_beside(tmp_path, "raise RuntimeError('operator torchvision::roi_align does not exist')")
    assert result.returncode == 1
    assert "roi_align does not exist" in result.stderr
