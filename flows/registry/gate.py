"""The rules by which a registered student becomes the champion; a pure function of figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

from dfkd_core.evaluation.intervals import lowest_paired_gain, lowest_unpaired_gain
from dfkd_flows.settings.params import RegistryConfig

__all__ = ["Decision", "Figures", "Reason", "decide"]

# Shares are quotients of whole numbers: equal ones may differ in the last bits.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the rules need to know of a student; None is not known."""

    score: float | None
    """Accuracy on labelled images, or agreement with the teacher on synthetic ones, in [0, 1]."""
    is_proxy: bool = False
    """Whether the score is agreement on synthetic images."""
    agreement: float | None = None
    """Share of images with the teacher's class, in [0, 1]."""
    teacher_accuracy: float | None = None
    """The teacher's accuracy on the same images, in [0, 1]."""
    ece: float | None = None
    """Expected calibration error, in [0, 1]."""
    latency_ms: float | None = None
    """Milliseconds for one image."""
    size_bytes: float | None = None
    """Size of the weights."""
    num_images: int | None = None
    """Evaluated images n."""
    hits: tuple[bool, ...] | None = None
    """Whether each of the n images was answered correctly."""
    version: str = ""
    """Version in the registry."""
    note: str = ""
    """How the figures were found, or why they are not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """The outcome of one rule."""

    holds: bool
    text: str
    """The outcome in words."""
    setting: str = ""
    """Setting that sets the limit; empty if the rule has none."""
    value: float | None = None
    """The student's figure; None if it is not known."""
    limit: float | None = None
    """Smallest or largest value that the rule allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a student becomes the champion, and the outcome of every rule."""

    promote: bool
    reasons: tuple[Reason, ...]

    @property
    def summary(self) -> str:
        """The comparison with the champion for a promotion, and all rules that do not hold."""
        broken = [reason.text for reason in self.reasons if not reason.holds]
        if not self.promote:
            return f"refused: {'; '.join(broken)}"
        if not broken:
            return self.reasons[-1].text
        others = [text for text in broken if text != self.reasons[-1].text]
        return "; ".join([self.reasons[-1].text, "promoted, as registry.enforce_rules is false", *others])


def decide(challenger: Figures, champion: Figures | None, rules: RegistryConfig) -> Decision:
    """Decide whether a student becomes the champion.

    Args:
        challenger: Its figures.
        champion: The champion's figures on the same images; its score is None if they are not known. None if there is
            no champion.
        rules: Limits.

    Returns:
        The decision with one reason per rule; the last one is the comparison with the champion.
    """
    compared = _comparison(challenger, champion, rules)
    reasons = (*_floors(challenger, rules), *_limits(challenger, rules), compared)
    promote = not rules.enforce_rules or all(reason.holds for reason in reasons)
    if champion is None and compared.holds and not promote:
        compared = dataclasses.replace(compared, text="there is no champion to compare with")
    return Decision(promote=promote, reasons=(*reasons[:-1], compared))


def _floors(found: Figures, rules: RegistryConfig) -> Iterator[Reason]:
    if not found.is_proxy:
        yield _accuracy_floor(found, rules.min_accuracy_share)
    name = _words(found) if found.is_proxy else "agreement"
    yield _at_least(name, found.agreement, rules.min_agreement, "registry.min_agreement")


def _accuracy_floor(found: Figures, share: float) -> Reason:
    setting = "registry.min_accuracy_share"
    if not _is_known(found.score):
        return Reason(holds=False, text=f"accuracy is not known ({setting})", setting=setting)
    if not _is_known(found.teacher_accuracy):
        text = f"accuracy {found.score:.4f}, and the teacher's is not known ({setting})"
        return Reason(holds=share == 0, text=text, setting=setting, value=found.score)
    limit = share * found.teacher_accuracy
    holds = found.score >= limit - _ROUNDING
    side = "at least" if holds else "less than"
    text = f"accuracy {found.score:.4f} is {side} {share:g} of the teacher's {found.teacher_accuracy:.4f} ({setting})"
    return Reason(holds=holds, text=text, setting=setting, value=found.score, limit=limit)


def _at_least(name: str, value: float | None, limit: float, setting: str) -> Reason:
    if not _is_known(value):
        return Reason(holds=False, text=f"{name} is not known ({setting})", setting=setting, limit=limit)
    holds = value >= limit - _ROUNDING
    text = f"{name} {value:.4f} is {'at least' if holds else 'below'} {setting} {limit:g}"
    return Reason(holds=holds, text=text, setting=setting, value=value, limit=limit)


def _limits(found: Figures, rules: RegistryConfig) -> Iterator[Reason]:
    """Yield the outcomes of the limits that are set."""
    if rules.max_ece < 1:
        yield _at_most("calibration error", found.ece, rules.max_ece, "registry.max_ece")
    if rules.max_latency_ms:
        yield _at_most("milliseconds for one image:", found.latency_ms, rules.max_latency_ms, "registry.max_latency_ms")
    if rules.max_size_kb:
        size = found.size_bytes / 1000 if found.size_bytes is not None else None
        yield _at_most("size in kB:", size, rules.max_size_kb, "registry.max_size_kb")


def _at_most(name: str, value: float | None, limit: float, setting: str) -> Reason:
    if not _is_known(value):
        return Reason(holds=False, text=f"{name.rstrip(':')} is not known ({setting})", setting=setting, limit=limit)
    holds = value <= limit + _ROUNDING
    text = f"{name} {value:.6g} is {'at most' if holds else 'above'} {setting} {limit:g}"
    return Reason(holds=holds, text=text, setting=setting, value=value, limit=limit)


def _comparison(challenger: Figures, champion: Figures | None, rules: RegistryConfig) -> Reason:
    setting, words = "registry.margin", _words(challenger)
    if not _is_known(challenger.score):
        return Reason(holds=False, text=f"{words} is not known ({setting})", setting=setting)
    own = f"{words} {challenger.score:.4f}"
    if champion is None:
        also = "" if challenger.is_proxy or challenger.agreement is None else f", agreement {challenger.agreement:.4f}"
        return Reason(holds=True, text=f"first champion, {own}{also}", value=challenger.score)
    if not _is_known(champion.score) or champion.is_proxy != challenger.is_proxy:
        about = ", ".join(filter(None, [f"version {champion.version}" if champion.version else "", champion.note]))
        text = f"{own}, and the champion's is not known" + (f" ({about})" if about else "")
        return Reason(holds=True, text=text, value=challenger.score)
    lowest, how = _lowest_gain(challenger, champion, rules.confidence)
    holds = lowest >= -rules.margin - _ROUNDING
    about = ", ".join(filter(None, [f"version {champion.version}" if champion.version else "", champion.note]))
    text = (
        f"{own} against the champion's {champion.score:.4f}{f' ({about})' if about else ''}: "
        f"{challenger.score - champion.score:+.4f}, at least {lowest:+.4f} at {100 * rules.confidence:g} % confidence "
        f"on {how}; {'within' if holds else 'not within'} {setting} {rules.margin:g}"
    )
    return Reason(holds=holds, text=text, setting=setting, value=lowest, limit=-rules.margin)


def _lowest_gain(challenger: Figures, champion: Figures, confidence: float) -> tuple[float, str]:
    """Return the lower bound of the gain and how it was found."""
    if challenger.hits and champion.hits and len(challenger.hits) == len(champion.hits):
        pairs = list(zip(challenger.hits, champion.hits))
        bound = lowest_paired_gain(pairs.count((True, False)), pairs.count((False, True)), len(pairs), confidence)
        return bound, f"the same {len(pairs)} images"
    assert challenger.score is not None
    assert champion.score is not None
    num_images = champion.num_images or challenger.num_images or 1
    bound = lowest_unpaired_gain(challenger.score, champion.score, num_images, confidence)
    return bound, f"{num_images} images, not compared one by one"


def _words(found: Figures) -> str:
    return "agreement on synthetic images (proxy, no real images)" if found.is_proxy else "accuracy"


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
