import ast

import pytest

from tasks import code
from tasks.code import STAGE_MODULES, code_digest, module_files


def dump(text: str) -> str:
    return ast.dump(code._without_docstrings(ast.parse(text)))


def test_documentation__does_not_change_the_digest() -> None:
    plain = "class A:\n    x: int = 1\n\ndef f():\n    return 2\n"
    documented = (
        '"""Module."""\n# why\nclass A:\n    """Class."""\n    x: int = 1\n    """Field."""\n\n'
        'def f():\n    """Function."""\n    return 2  # two\n'
    )
    assert dump(documented) == dump(plain)


def test_code__changes_the_digest() -> None:
    assert dump("def f():\n    return 2\n") != dump("def f():\n    return 3\n")
    assert dump("x = 'a'\n") != dump("x = 'b'\n")


@pytest.mark.parametrize("stage", STAGE_MODULES)
def test_code_digest__differs_between_stages_and_repeats(stage: str) -> None:
    assert len(code_digest(stage)) == 64
    assert sum(code_digest(other) == code_digest(stage) for other in STAGE_MODULES) == 1


def test_module_files__opens_packages() -> None:
    assert code.ROOT / "dfkd_core/synthesis/shards.py" in module_files("synthesize")
