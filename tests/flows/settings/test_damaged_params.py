"""The damages of params.yaml that `make faults` tries, without a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_inputs import PARAMS, Damage
from fault_workspace import has_next_command

from dfkd_core.errors import DfkdError
from dfkd_flows.settings.settling import planned, settle


@pytest.mark.parametrize("damage", PARAMS.values(), ids=PARAMS.keys())
def test_damaged_params__are_refused_with_the_next_step(project: Path, damage: Damage) -> None:
    damage(project)
    with pytest.raises(DfkdError) as caught, planned(None, []) as plan:
        settle(plan)
    assert has_next_command(str(caught.value)), str(caught.value)
