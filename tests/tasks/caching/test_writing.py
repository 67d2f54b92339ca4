from pathlib import Path

from dfkd_tasks.caching.writing import write_fault


def test_write_fault__existing_and_new_folders_leave_no_trace(tmp_path: Path) -> None:
    assert write_fault(tmp_path) == ""
    assert write_fault(tmp_path / "new" / "folder") == ""
    assert list(tmp_path.iterdir()) == []


def test_write_fault__names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert write_fault(tmp_path / "file" / "folder") == f"{tmp_path / 'file'} is a file, not a folder"
    # Not even root can write there.
    assert write_fault(Path("/proc/folder")).startswith("/proc: ")
