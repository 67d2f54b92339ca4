"""What a result depends on: the commit, and digests of the files that it was made from."""

from __future__ import annotations

from dfkd_core.common.digests import file_sha256
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, Manifest
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.dvc_project.status import git_commit

__all__ = ["lineage_of"]


def lineage_of(params: Params, manifest: Manifest, predictions: Predictions) -> dict[str, str]:
    """Return the names, the commit and the digests of a student's results, without those of dvc.lock.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        manifest: Manifest of its transfer set.
        predictions: Its answers.
    """
    teacher, student = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    return {
        "git_commit": git_commit(),
        "images_sha256": predictions.images_sha256,
        "student": student.name,
        "student_sha256": file_sha256(student.network / "model.safetensors"),
        "teacher": teacher.name,
        "teacher_digest": manifest.teacher_digest,
        "transfer_set_sha256": file_sha256(teacher.transfer_set / MANIFEST_NAME),
    }
