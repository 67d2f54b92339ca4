from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from dfkd_tasks.mlflow_store.publishing import open_store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store without experiments; to make one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        open_store("other")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """Change into a folder with a store."""
    monkeypatch.chdir(tmp_path)
    yield Path(shutil.copy2(empty_store, "mlflow.db"))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # resets it
