import os
from pathlib import Path

import pytest

from dfkd_core.errors import ConfigError
from dfkd_tasks.caching.workspace import is_intact, place_folder, reference, work_folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_folder(name: str, **files: str) -> Path:
    folder = Path(name)
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_reference__is_the_same_for_the_same_files_anywhere() -> None:
    one, other = make_folder("one", a="1", b="2"), make_folder("other", b="2", a="1")
    assert reference(one).sha256 == reference(other).sha256
    assert reference(one / "a").sha256 != reference(one / "b").sha256


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "add", "rename"])
def test_is_intact__sees_damage(damage: str) -> None:
    folder = make_folder("one", a="11", b="2")
    found = reference(folder)
    assert is_intact(found)
    match damage:
        case "change":
            (folder / "a").write_text("12")
        case "truncate":
            (folder / "a").write_text("1")
        case "remove":
            (folder / "a").unlink()
        case "add":
            (folder / "c").write_text("")
        case "rename":
            (folder / "a").rename(folder / "c")
    assert not is_intact(found)


def test_is_intact__folder_is_gone() -> None:
    folder = make_folder("one")
    found = reference(folder)
    folder.rmdir()
    assert not is_intact(found)


def test_place_folder__leaves_nothing_else() -> None:
    source, target = make_folder("one", a="1"), make_folder("target", old="0")
    place_folder(source, target)
    assert [path.name for path in target.iterdir()] == ["a"]


def test_place_folder__leaves_what_a_link_leads_to_and_a_file() -> None:
    source, others = make_folder("one", a="1"), make_folder("others", b="mine")
    Path("link").symlink_to(others)
    Path("file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(ConfigError, match=f"{name} must be a folder and is a link or a file"):
            place_folder(source, Path(name))
    assert ((others / "b").read_text(), Path("file").read_text()) == ("mine", "mine")


def test_work_folder__is_addressed_by_inputs_and_keeps_the_newest() -> None:
    first = work_folder("synthesize", {"seed": 0})
    assert work_folder("synthesize", {"seed": 0}) == first
    os.utime(first, (0, 0))
    others = [work_folder("synthesize", {"seed": seed}) for seed in (1, 2, 3)]
    assert not first.exists()
    assert all(folder.is_dir() for folder in others)
    assert work_folder("teacher", {"seed": 1}).name != others[0].name
