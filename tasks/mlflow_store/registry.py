"""Teachers in MLflow: downloads the model at an address of its registry or of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dfkd_core.errors import TeacherError
from dfkd_core.models.storage import CONFIG_FILE
from dfkd_core.teachers.source import SourceConfig
from dfkd_tasks.caching.workspace import STORE
from dfkd_tasks.mlflow_store.addresses import TRACKING, is_own_store_missing, page_command, use_store
from dfkd_tasks.records.foreign import reason

__all__ = ["SCHEMES", "local_source"]

SCHEMES = ("models:/", "runs:/")

# Files in which MLflow's PyTorch flavour stores the model, the safe form first.
_PROGRAMS = ("data/model.pt2", "data/model.pth")


def local_source(source: SourceConfig, folder: Path) -> SourceConfig:
    """Return the source with an MLflow address replaced by the path of its download in `folder`.

    The tracking server is that of MLFLOW_TRACKING_URI, or the project's own store.

    Raises:
        TeacherError: MLflow has no such model, or it is not a PyTorch model.
    """
    if not source.model.startswith(SCHEMES):
        return source
    if is_own_store_missing():
        # MLflow would make an empty one.
        raise TeacherError(f"{source.model} is in MLflow, and {STORE} is missing here. Set its server in {TRACKING}")
    import mlflow
    from mlflow.exceptions import MlflowException

    use_store()
    try:
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=source.model, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        raise TeacherError(
            f"MLflow has no {source.model}: {reason(error)}. List its models: {page_command()}, or set another "
            f"server in {TRACKING}"
        ) from error
    for candidate in (path, *(path / name for name in _PROGRAMS)):
        if candidate.is_file() or (candidate / CONFIG_FILE).is_file():
            return dataclasses.replace(source, model=str(candidate))
    raise TeacherError(
        f"{source.model} holds no PyTorch model: neither {', '.join(_PROGRAMS)} nor a folder with {CONFIG_FILE}. It "
        f"has: {', '.join(sorted(item.name for item in path.iterdir())[:10])}"
    )
