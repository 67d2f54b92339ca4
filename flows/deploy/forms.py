"""The parameters of the deployments as JSON schemas: Prefect shows them as forms and refuses other values.

The names are those of the project, so these schemas are made when it is deployed, not from annotations.
"""

from __future__ import annotations

from typing import Any

from dfkd_flows.settings.overrides import preset_names
from dfkd_flows.settings.params import Params

__all__ = ["pipeline_form", "reevaluation_form"]

_MOST = 10_000_000


def pipeline_form(params: Params) -> dict[str, Any]:
    """Return the form of the flow `pipeline` with the teachers and students of a project."""
    teacher = _optional(_choice(params.teachers))
    return _form(
        teacher=(teacher, None, "Make the students of this teacher; of all teachers if empty."),
        students=(_students(params), None, "Make these students; all if empty."),
        preset=(_optional(_choice(preset_names())), None, "Replace the values of params.yaml, for this run only."),
        epochs=(_optional(_whole()), None, "Epochs of the distillation, for this run only."),
        num_images=(_optional(_whole()), None, "Images of the transfer set, for this run only."),
        overrides=(
            _optional(_list({"type": "string", "pattern": "^[A-Za-z_][^=]*=.*"})),
            None,
            "Other values like synthesis.method=dirichlet, for this run only.",
        ),
        pull=({"type": "boolean"}, True, "Fetch results from the DVC remote first."),
        git_pull=({"type": "boolean"}, False, "Pull the git repository first; changed files stop the run."),
    )


def reevaluation_form(params: Params) -> dict[str, Any]:
    """Return the form of the flow `reevaluate`."""
    return _form(
        students=(_students(params), None, "Evaluate the champions of these students; of all if empty."),
        dataset=(
            _optional({"type": "string"}),
            None,
            "Labelled images: folder:PATH, file:PATH, torchvision:NAME or a built-in name; those of params.yaml if "
            "empty.",
        ),
    )


def _form(**fields: tuple[dict[str, Any], Any, str]) -> dict[str, Any]:
    """Return a schema from the type, the default and the description of each parameter."""
    properties = {
        name: {**kind, "default": default, "description": text, "position": position, "title": name}
        for position, (name, (kind, default, text)) in enumerate(fields.items())
    }
    return {
        "title": "Parameters",
        "type": "object",
        "properties": properties,
        "required": [],
        "definitions": {},
        "additionalProperties": False,
    }


def _students(params: Params) -> dict[str, Any]:
    return _optional(_list(_choice(params.students)) | {"uniqueItems": True})


def _optional(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


def _list(kind: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": kind}


def _choice(names: Any) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _whole() -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": _MOST}
