"""The gate between a registered student and the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dfkd_core.config import RegistryConfig

__all__ = ["ACCURACY", "AGREEMENT", "Promotion", "decide_promotion"]

ACCURACY = "student.accuracy"
AGREEMENT = "student.agreement"


@dataclass(frozen=True, slots=True)
class Promotion:
    """Whether a challenger becomes the champion, and why."""

    promote: bool
    reason: str


def decide_promotion(
    challenger: Mapping[str, float], champion: Mapping[str, float] | None, rules: RegistryConfig
) -> Promotion:
    """Compare a challenger with the champion.

    Args:
        challenger: Its figures by name; `student.accuracy` and `student.agreement` are looked at.
        champion: The champion's figures on the same data set, None where there is no champion.
        rules: What a champion must reach.
    """
    missing = [name for name in (ACCURACY, AGREEMENT) if not math.isfinite(challenger.get(name, math.nan))]
    if missing:
        return Promotion(False, f"{' and '.join(missing)} not known")
    accuracy, agreement = challenger[ACCURACY], challenger[AGREEMENT]
    if agreement < rules.min_agreement:
        return Promotion(False, f"agreement {agreement:.4f} is below registry.min_agreement {rules.min_agreement}")
    if champion is None:
        return Promotion(True, f"first champion, accuracy {accuracy:.4f}, agreement {agreement:.4f}")
    before = champion.get(ACCURACY, math.nan)
    if not math.isfinite(before):
        return Promotion(True, f"accuracy {accuracy:.4f}, and the champion's is not known")
    gain = accuracy - before
    comparison = f"accuracy {accuracy:.4f} against the champion's {before:.4f}"
    if gain < rules.min_improvement:
        return Promotion(False, f"{comparison}: {gain:+.4f} is below registry.min_improvement {rules.min_improvement}")
    return Promotion(True, f"{comparison}: {gain:+.4f}")
