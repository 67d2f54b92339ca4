import pytest
import torch

from dfkd_core.common.memory import GIB, memory_at_hand


@pytest.fixture
def machine(tmp_path):
    """A machine with 8 GiB available and no control group."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "groups").mkdir()
    return tmp_path


def limit(folder, names, numbers, reclaimable):
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in zip(names, numbers):
        (folder / name).write_text(f"{number}\n")
    (folder / "memory.stat").write_text("anon 1\n" + reclaimable + "\n")


def found(machine):
    return memory_at_hand(proc=machine / "proc", cgroups=machine / "groups")


def belong_to(machine, *lines):
    (machine / "proc" / "self" / "cgroup").write_text("\n".join(lines) + "\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_groups_it_is_what_the_system_calls_available(machine):
    assert found(machine) == 8 * GIB


@pytest.mark.parametrize("place", [".", "job", "job/step"])
def test_a_limit_of_version_2_counts_wherever_it_stands_above(machine, place):
    belong_to(machine, "0::/job/step")
    limit(machine / "groups" / place, V2, (3 * GIB, 2 * GIB), f"inactive_file {GIB // 2}")
    assert found(machine) == 1.5 * GIB


def test_the_path_of_another_name_space_still_finds_the_limit_of_the_container(machine):
    belong_to(machine, "0::/docker/abc")
    limit(machine / "groups", V2, (3 * GIB, GIB), "inactive_file 0")
    assert found(machine) == 2 * GIB


def test_a_limit_of_version_1_counts(machine):
    belong_to(machine, "9:name=systemd:/", "4:cpu,memory:/job", "0::/")
    limit(machine / "groups" / "memory" / "job", V1, (2 * GIB, GIB), f"total_inactive_file {GIB}")
    assert found(machine) == 2 * GIB


def test_no_limit_and_one_above_the_machine_change_nothing(machine):
    belong_to(machine, "4:memory:/job", "0::/job")
    limit(machine / "groups" / "job", V2, ("max", GIB), "inactive_file 0")
    limit(machine / "groups" / "memory" / "job", V1, (2**63 - 4096, GIB), "total_inactive_file 0")
    assert found(machine) == 8 * GIB


def test_a_group_that_has_used_up_its_limit_leaves_nothing(machine):
    belong_to(machine, "0::/job")
    limit(machine / "groups" / "job", V2, (GIB, 2 * GIB), "inactive_file 0")
    assert found(machine) == 0


def test_this_machine_has_some_and_less_than_is_installed():
    assert 0 < memory_at_hand("cpu") < 2**50


def test_a_system_that_does_not_tell_gives_a_part_of_what_is_installed(tmp_path):
    assert GIB // 8 < memory_at_hand(proc=tmp_path, cgroups=tmp_path) < 2**50


@pytest.mark.gpu
def test_a_gpu_counts_what_the_process_holds_unused():
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    before = memory_at_hand("cuda")
    del held
    assert memory_at_hand("cuda") >= before + GIB
