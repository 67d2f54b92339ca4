"""The user's word on a factory, and when it is requested again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_tasks.caching.trust import allow_factories, trusted_factories

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.5,), layer="fc1")
NAME = "trusted_nets:make"
MODEL, MODULE = Path("model"), Path("trusted_nets.py")


@pytest.fixture(autouse=True)
def _stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(MODEL, build_classifier(CARD, seed=0))
    change(network=NAME)
    MODULE.write_text("raise SystemExit('imported')\n")


def change(**fields: object) -> None:
    path = MODEL / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_trusted_factories__are_none_without_a_word() -> None:
    assert trusted_factories(MODEL) == ()
    allow_factories(MODEL, ["other:make", "trusted_nets:make_more", "trusted_nets"])
    assert trusted_factories(MODEL) == ()


@pytest.mark.parametrize("word", [NAME, "trusted_nets.make"])
def test_allow_factories__is_remembered_in_the_project(word: str) -> None:
    allow_factories(MODEL, [word])
    assert trusted_factories(MODEL) == (NAME,)
    assert "trusted_nets" in Path(".dfkd/trusted_factories.json").read_text()
    before = Path(".dfkd/trusted_factories.json").read_bytes()
    allow_factories(MODEL, [word])
    assert Path(".dfkd/trusted_factories.json").read_bytes() == before


def test_a_word__ends_with_the_card_and_with_the_source() -> None:
    allow_factories(MODEL, [NAME])
    text = MODULE.read_text()
    MODULE.write_text(text + "# changed\n")
    assert trusted_factories(MODEL) == ()
    MODULE.write_text(text)
    assert trusted_factories(MODEL) == (NAME,)
    change(arguments={"width": 2})
    assert trusted_factories(MODEL) == ()
    allow_factories(MODEL, [NAME])
    assert trusted_factories(MODEL) == (NAME,)


def test_allow_factories__notes_nothing_for_what_is_no_stored_model() -> None:
    for path in (Path("nowhere"), MODULE, MODEL / "model.safetensors", Path("models:/x@y")):
        allow_factories(path, [NAME])
    assert not Path(".dfkd").exists()


def test_a_damaged_note__is_no_word() -> None:
    allow_factories(MODEL, [NAME])
    for text in ("", "{}", "[1]", '{"a": 1, "a": 1}'):
        Path(".dfkd/trusted_factories.json").write_text(text)
        assert trusted_factories(MODEL) == ()
