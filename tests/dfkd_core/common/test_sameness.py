from __future__ import annotations

import torch

from dfkd_core.common.sameness import difference

BEFORE = torch.tensor([[1.0, 2.0]])


def test_difference__is_empty_up_to_rounding_and_else_states_the_shapes_or_the_largest_change() -> None:
    assert difference(BEFORE + 5e-4, BEFORE) == ""
    moved = BEFORE + torch.tensor([0.0, 0.5])
    assert difference(moved, BEFORE) == "its answers for the same images differ by up to 0.5"
    assert difference(BEFORE[0], BEFORE) == "its answer has shape (2,), before (1, 2)"
    assert "nan" in difference(BEFORE * torch.nan, BEFORE * torch.nan)
