import pytest
import torch

from dfkd_core.common.scratch import tensor_in_file


def test_a_tensor_in_a_file_is_written_and_read_and_leaves_no_file(tmp_path):
    numbers = torch.arange(3 * 2**19, dtype=torch.int32).view(-1, 3)
    stored = tensor_in_file(numbers.shape, numbers.dtype, tmp_path)
    assert not stored.any()
    stored[:] = numbers
    assert torch.equal(stored, numbers)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        tensor_in_file(torch.Size([4]), torch.float32, tmp_path / "missing")
