"""code.json: the digest of each stage's code, for projects that hold no code of their own.

Their stages depend on it in dvc.yaml, where those of a checkout depend on the folders of the code. The stage `code`
writes it before all others. Nothing here imports torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from dfkd_core.common.digests import write_atomically
from dfkd_tasks.caching.code import ENTRY_MODULES, code_digest

__all__ = ["CODE_FILE", "CODE_STAGE", "PIPELINE", "code_text", "refresh_code_file", "write_code_file"]

CODE_FILE = Path("code.json")
CODE_STAGE = "code"
"""The stage that writes it."""
PIPELINE = Path("dvc.yaml")

_NO_STAGES = ("tune",)


def code_text() -> str:
    """Return the content of code.json: one SHA-256 per stage of dvc.yaml, of the code that runs."""
    digests = {stage: code_digest(stage) for stage in ENTRY_MODULES if stage not in _NO_STAGES}
    return json.dumps(digests, indent=2) + "\n"


def write_code_file() -> None:
    """Write code.json into the current project, whole or not at all; an equal file stays as it is."""
    text = code_text()
    if CODE_FILE.is_file() and CODE_FILE.read_bytes() == text.encode():
        return
    with write_atomically(CODE_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refresh_code_file() -> None:
    """Write code.json if the stages of the current project depend on it."""
    try:
        depends = CODE_FILE.name in PIPELINE.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        # DVC reports it.
        return
    if depends:
        write_code_file()
