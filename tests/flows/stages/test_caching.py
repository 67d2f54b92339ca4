import pytest

from dfkd_core.common.memory import GIB, memory_at_hand
from dfkd_core.errors import ConfigError
from dfkd_flows.settings.params import ExecutionConfig
from dfkd_flows.stages.caching import compute_for


def test_memory__what_the_parameters_say_is_shared_by_the_workers() -> None:
    config = ExecutionConfig(device="cpu", memory_gib=6.0)
    assert compute_for(config).memory == 6 * GIB
    assert compute_for(config, num_workers=4).memory == 1.5 * GIB


def test_memory__is_measured_where_they_say_nothing() -> None:
    found = compute_for(ExecutionConfig(device="cpu"), num_workers=2).memory
    assert found == pytest.approx(memory_at_hand("cpu") / 2, rel=0.5)


def test_memory__cannot_be_negative() -> None:
    with pytest.raises(ConfigError, match="memory_gib"):
        ExecutionConfig(memory_gib=-1.0)


@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, 0), (2, 2)])
def test_prefetch__takes_a_second_core_only_if_the_parameters_allow_it(num_workers: int, prefetch: int) -> None:
    assert compute_for(ExecutionConfig(device="cpu", num_workers=num_workers)).prefetch == prefetch
