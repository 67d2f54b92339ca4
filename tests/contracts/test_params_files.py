"""params.yaml and the presets are valid, complete and documented."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd_flows.settings.overrides import apply_preset, preset_names
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten, load_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_shipped_params__are_the_defaults_and_name_every_key() -> None:
    assert load_params(Path("params.yaml")) == Params()
    keys = re.findall(r"^ *(\w+):", Path("params.yaml").read_text(), flags=re.MULTILINE)
    assert len(keys) == len(flatten(Params())) + _num_sections()


def test_shipped_params__every_key_has_a_comment() -> None:
    # Names of teachers and students are no settings.
    lines = Path("params.yaml").read_text().partition("teachers:")[0].splitlines()
    without = [line for before, line in itertools.pairwise(lines) if re.match(r" *\w+:", line) and "#" not in before]
    assert without == []


def test_presets__are_all_there_and_valid() -> None:
    assert preset_names() == ["best", "default", "digits", "fast"]
    for name in preset_names():
        assert apply_preset(name).synthesis.num_images > 0


def test_preset_default__is_the_defaults() -> None:
    assert apply_preset("default") == Params()


def _num_sections() -> int:
    paths = {path.rpartition(".")[0] for path in flatten(Params())}
    return len({".".join(path.split(".")[:n]) for path in paths if path for n in range(1, path.count(".") + 2)})


def test_shipped_params__comments_say_what_the_fields_say() -> None:
    lines = Path("params.yaml").read_text().splitlines()
    comments = " ".join(line.strip().lstrip("#").strip() for line in lines if line.strip().startswith("#"))
    missing = [doc for section in _sections(Params()) for doc in _field_docs(section) if doc not in comments]
    assert missing == []


def _sections(section: Any) -> Iterator[Any]:
    yield section
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _sections(value)


def _field_docs(section: Any) -> list[str]:
    """Return the string literals under the fields of a section, each on one line without its last full stop."""
    bodies = [_body(cls) for cls in type(section).__mro__ if dataclasses.is_dataclass(cls)]
    pairs = [
        (line, after) for body in bodies for line, after in itertools.pairwise(body) if isinstance(line, ast.AnnAssign)
    ]
    texts = [ast.literal_eval(after.value) for _, after in pairs if isinstance(after, ast.Expr)]
    return [" ".join(text.split()).rstrip(".") for text in texts]


def _body(cls: type) -> list[ast.stmt]:
    [definition] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    return definition.body
