"""Data-free knowledge distillation in plain PyTorch: no orchestration, usable in a notebook.

    teacher = load_teacher(Path("artifacts/teachers/default/network"))
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    synthesizer = build_synthesizer(SynthesisConfig(), teacher, statistics)

The public names are those in `__init__.pyi`. They load on first use, so that importing a single module is fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
