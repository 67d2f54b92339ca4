from pathlib import Path

import pytest

from dfkd_tasks.dvc_project.files import file_faults, merge_marker, storage_faults

WHOLE = "stages: {teacher: {}, statistics: {}, synthesize: {}, distill: {}, evaluate: {}}\n"
MARKED = "stages:\n<<<<<<< HEAD\n  a: {}\n=======\n  b: {}\n>>>>>>> other\n"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path("dvc.yaml").write_text(WHOLE)


def only_fault() -> str:
    [fault] = file_faults()
    return fault


def test_file_faults__none() -> None:
    assert list(file_faults()) == []
    # DVC's program makes it again.
    Path("dvc.lock").write_text(MARKED)
    assert list(file_faults()) == []


def test_merge_marker__is_the_number_of_its_line() -> None:
    assert merge_marker(MARKED) == 2
    assert merge_marker("a: <<<<<<< no\n=======\n") == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (MARKED.encode(), ", line 2: there are merge markers of git"),
        (b"stages: [\n", ", line 2, is not YAML: "),
        (b"stages:\n\t- a\n", ", line 2, is not YAML: "),
        (b"a: 1\n---\nb: 2\n", ", line 2, is not YAML: "),
        (b"stages: 3\n", " has no stages"),
        (b"- a\n", " has no stages"),
        (b"", " has no stages"),
        (b"stages: {}\n", " has no stages"),
        (b"stages: {teacher: {}, synthesize: {}, distill: {}}\n", " has no stage statistics and no stage evaluate"),
        (b"\xff\xfe", " is not UTF-8 text: byte 0 cannot be read"),
        (b"a: \x00\n", " is not YAML: "),
    ],
)
def test_file_faults__a_damaged_pipeline(content: bytes, reason: str) -> None:
    Path("dvc.yaml").write_bytes(content)
    fault = only_fault()
    assert fault.startswith(f"dvc.yaml{reason}")
    assert "\n" not in fault
    assert fault.endswith("git checkout dvc.yaml")


def test_file_faults__missing_files_and_folders_in_their_place() -> None:
    Path("dvc.yaml").unlink()
    assert only_fault() == "dvc.yaml is missing. Correct it, or restore it with: git checkout dvc.yaml"
    Path("dvc.yaml").mkdir()
    assert only_fault().startswith("dvc.yaml cannot be read: Is a directory")
    Path("dvc.lock").mkdir()
    assert "dvc.lock is not a file. Move it away with: mv dvc.lock dvc.lock.old" in file_faults()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("['remote \"local\"']\n    url = ../store\n[core]\n    remote = local\n", ""),
        ("['remote \"far\"']\n    url = s3://bucket/%x\n[core]\n    remote = far\n", ""),
        ("[core]\n    remote = gone\n", "DVC's default remote 'gone' has no address in .dvc/config"),
        ("['remote \"local\"']\n    url = ../dvc.yaml/x\n[core]\n    remote = local\n", "DVC's remote 'local' at "),
        (
            "[core]\n    remote = local\n['remote \"local\"']\n    url = /proc/store\n",
            "DVC's remote 'local' at /proc/store",
        ),
        (
            "[cache]\n    dir = /proc/cache\n[core]\n    remote = far\n['remote \"far\"']\n    url = s3://x\n",
            "DVC's cache /proc/cache",
        ),
        (
            "[core]\n    analytics = false\n",
            "DVC has no default remote to copy results to. Set one with: dvc remote add",
        ),
        ("core\n", ".dvc/config or .dvc/config.local cannot be read: "),
    ],
)
def test_storage_faults__cache_and_remote(config: str, reason: str) -> None:
    Path(".dvc/config").write_text(config)
    assert "".join(storage_faults()).startswith(reason)
    assert bool(list(storage_faults())) == bool(reason)


def test_storage_faults__the_local_configuration_comes_last() -> None:
    Path(".dvc/config").write_text("[core]\n    remote = local\n['remote \"local\"']\n    url = /proc/store\n")
    Path(".dvc/config.local").write_text("['remote \"local\"']\n    url = store\n")
    assert list(storage_faults()) == []


def test_storage_faults__the_remote_may_be_set_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", "user")
    Path("user").mkdir()
    Path("user/config").write_text("[core]\n    remote = mine\n['remote \"mine\"']\n    url = /proc/mine\n")
    [fault] = storage_faults()
    assert fault.startswith("DVC's remote 'mine' at /proc/mine cannot be written")
