import pytest
import torch

from dfkd_core.common.rows import ShardedRows


@pytest.fixture
def whole():
    return torch.randint(0, 256, (11, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def rows(whole):
    # One piece is empty, as no other test has it.
    return ShardedRows(whole.split([4, 0, 1, 6]))


def test_shape_type_and_length_are_those_of_the_joined_tensors(rows, whole):
    assert (rows.shape, rows.dtype, rows.device, len(rows)) == (whole.shape, whole.dtype, whole.device, len(whole))


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(3, 6),
        slice(-2, None),
        slice(None, None, 3),
        slice(5, 5),
        slice(8, 100),
        torch.randperm(11, generator=torch.Generator().manual_seed(1)),
        torch.tensor([10, 0, 4, 4, 3, 5, 0]),
        torch.tensor([-1, -11, 2]),
        torch.empty(0, dtype=torch.int64),
        0,
        4,
        -1,
    ],
)
def test_an_index_gives_the_rows_of_the_joined_tensors(rows, whole, index):
    assert torch.equal(rows[index], whole[index])
    assert rows[index].dtype == whole.dtype


def test_what_is_given_is_a_copy(rows, whole):
    rows[torch.tensor([0])].zero_()
    rows[0:1].zero_()
    assert torch.equal(rows[:], whole)


@pytest.mark.parametrize("index", [11, -12, torch.tensor([0, 11]), torch.tensor([-12])])
def test_a_position_out_of_range_is_an_error(rows, index):
    with pytest.raises(IndexError, match="there are 11 rows"):
        rows[index]


@pytest.mark.parametrize("index", [torch.ones(11, dtype=torch.bool), torch.tensor([0.0]), torch.tensor(3)])
def test_positions_of_another_kind_are_an_error(rows, index):
    with pytest.raises(IndexError, match="must be int64"):
        rows[index]


def test_a_check_sees_the_rows_of_each_piece_that_is_read(whole):
    seen = []
    rows = ShardedRows(whole.split([4, 7]), lambda index, read: seen.append((index, read)))
    rows[torch.tensor([5, 0, 4])]
    assert [index for index, _ in seen] == [0, 1]
    assert torch.equal(seen[0][1], whole[:1])
    assert torch.equal(seen[1][1], whole[4:6])
