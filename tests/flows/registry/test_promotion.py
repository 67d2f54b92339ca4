"""What a publication states of its decision, also if it was made before, or an alias was moved by hand since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from dfkd_flows.registry.gate import Decision, Reason
from dfkd_flows.registry.promotion import continued, record
from dfkd_tasks.mlflow_store.aliases import Version, find_version
from dfkd_tasks.mlflow_store.publishing import open_store

MODEL = "student"
GOOD = Decision(promote=True, reasons=(Reason(holds=True, text="first champion"),))
BAD = Decision(promote=False, reasons=(Reason(holds=False, text="worse", setting="registry.margin"),))


@pytest.fixture
def new_version(store: Path) -> Callable[[], Version]:
    """Return a function that registers a version."""
    open_store("dfkd")
    client = mlflow.MlflowClient()
    client.create_registered_model(MODEL)

    def make() -> Version:
        found = find_version(MODEL, str(client.create_model_version(MODEL, source=str(store.parent)).version))
        assert found
        return found

    return make


def test_publication__states_refusal_rules_and_champion(new_version: Callable[[], Version]) -> None:
    first = record(new_version(), BAD)
    assert (first.refused, first.broken, first.champion) == (True, ("registry.margin",), "")
    second = record(new_version(), GOOD)
    assert (second.refused, second.broken, second.champion) == (False, (), "2")
    third = record(new_version(), BAD)
    assert (third.refused, third.champion) == (True, "2")
    assert [continued(found).refused for found in (second, third)] == [False, True]
    # A person decides otherwise.
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", "3")
    replaced, chosen = continued(second), continued(third)
    assert (replaced.promoted, replaced.refused, replaced.champion) == (False, False, "3")
    assert replaced.reason.endswith("But the champion is version 3 now")
    assert (chosen.promoted, chosen.refused) == (True, False)
    assert chosen.reason == "the alias was set by hand. The rules had decided: refused: worse"
