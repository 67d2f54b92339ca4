import pytest
import torch

from dfkd_core.priors.draws import Cursor

ROWS = torch.tensor([[0.0, 0.25, 0.5, 0.75], [0.9, 0.8, 0.7, 0.6]])


def test_numbers_are_handed_out_in_order_and_shape():
    draws = Cursor(ROWS)
    assert draws.take().tolist() == ROWS[:, 0].tolist()
    torch.testing.assert_close(draws.take(3, 1), ROWS[:, 1:, None])


def test_between_scales_to_the_range():
    torch.testing.assert_close(Cursor(ROWS).between(-1, 3), torch.tensor([-1.0, 2.6]))


def test_choice_follows_the_weights():
    rows = torch.linspace(0, 1, 1001)[:-1, None]
    counts = torch.bincount(Cursor(rows).choice(1, 3, 6)).tolist()
    assert counts == [100, 300, 600]


def test_taking_more_than_was_drawn_is_an_error():
    draws = Cursor(ROWS)
    draws.take(4)
    with pytest.raises(AssertionError, match="more columns"):
        draws.take()
