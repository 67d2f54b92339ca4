"""Data-free knowledge distillation in plain PyTorch: no orchestration, usable in a notebook.

    teacher = load_teacher(Path("artifacts/teacher"))
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    synthesizer = build_synthesizer(SynthesisConfig(), teacher, statistics)

The public names are loaded at first use, so that importing a single module stays quick.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "bringing": ("BroughtTeacher", "bring_module", "bring_teacher"),
    "config": ("Params",),
    "data": ("DataConfig", "LabelledImages", "load_dataset"),
    "distillation": ("distill", "distill_images"),
    "distillation_config": ("DistillationConfig",),
    "errors": ("DfkdError",),
    "evaluation": ("EvaluationReport", "evaluate"),
    "export": ("export_model",),
    "in_memory": ("make_student", "make_transfer_set"),
    "models": ("Classifier", "ModelCard", "build_classifier", "load_model", "save_model"),
    "proxy": ("proxy_score",),
    "source": ("SourceConfig",),
    "statistics": ("FeatureStatistics", "StatisticsConfig", "estimate_statistics"),
    "synthesis.methods": ("SynthesisConfig", "build_synthesizer"),
    "synthesis.shards": ("synthesize_shard",),
    "teacher": ("Teacher", "load_teacher"),
    "training": ("TeacherConfig", "train_teacher"),
    "transfer_set": ("TransferSet", "verify_transfer_set", "write_manifest", "write_shard"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
