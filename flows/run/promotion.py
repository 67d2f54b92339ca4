"""The rule by which a registered student becomes the champion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dfkd_flows.settings.params import RegistryConfig

__all__ = ["ACCURACY", "AGREEMENT", "PROXY", "Promotion", "decide_promotion"]

ACCURACY = "student.accuracy"
AGREEMENT = "student.agreement"
PROXY = "proxy.agreement"


@dataclass(frozen=True, slots=True)
class Promotion:
    """Whether a challenger becomes the champion, and the reason."""

    promote: bool
    reason: str


def decide_promotion(
    challenger: Mapping[str, float], champion: Mapping[str, float] | None, rules: RegistryConfig, *, note: str = ""
) -> Promotion:
    """Compare a challenger with the champion: by accuracy, or without real images by agreement on synthetic ones.

    Args:
        challenger: Its figures by name; `proxy.agreement` counts, or else `student.accuracy` and
            `student.agreement`.
        champion: The champion's figures on the same data set, None if there is no champion.
        rules: Conditions for a champion.
        note: The champion's version and why its figures may be not known, for the reason.
    """
    measure, agreement_name, words = ACCURACY, AGREEMENT, "accuracy"
    if PROXY in challenger:
        measure = agreement_name = PROXY
        words = "agreement on synthetic images (proxy, no real images)"
    missing = [name for name in dict.fromkeys((measure, agreement_name)) if not _is_known(challenger, name)]
    if missing:
        return Promotion(False, f"{' and '.join(missing)} not known")
    value, agreement = challenger[measure], challenger[agreement_name]
    if agreement < rules.min_agreement:
        what = words if measure == PROXY else "agreement"
        return Promotion(False, f"{what} {agreement:.4f} is below registry.min_agreement {rules.min_agreement}")
    if champion is None:
        also = "" if measure == PROXY else f", agreement {agreement:.4f}"
        return Promotion(True, f"first champion, {words} {value:.4f}{also}")
    if not _is_known(champion, measure):
        return Promotion(True, f"{words} {value:.4f}, and the champion's is not known" + (f" ({note})" if note else ""))
    gain = value - champion[measure]
    comparison = f"{words} {value:.4f} against the champion's {champion[measure]:.4f}"
    if gain < rules.min_improvement:
        return Promotion(False, f"{comparison}: {gain:+.4f} is below registry.min_improvement {rules.min_improvement}")
    return Promotion(True, f"{comparison}: {gain:+.4f}")


def _is_known(figures: Mapping[str, float], name: str) -> bool:
    return math.isfinite(figures.get(name, math.nan))
