"""Which students the rules admit, and that every rule says why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dfkd_core.errors import ConfigError
from dfkd_flows.registry.gate import Decision, Figures, decide
from dfkd_flows.settings.params import RegistryConfig

DEFAULT = RegistryConfig()


def figures(score: float | None, *, n: int = 10_000, **others: Any) -> Figures:
    known = {"agreement": 0.93, "teacher_accuracy": 0.9, "num_images": n} | others
    return Figures(score=score, **known)


def proxy(score: float | None, **others: Any) -> Figures:
    return Figures(score=score, agreement=score, is_proxy=True, num_images=10_000, **others)


def answering(right: int, n: int, first: int = 0, **others: Any) -> Figures:
    """Return figures of a student that is right on `right` of n images, from position `first` on, in a circle."""
    hits = tuple((position - first) % n < right for position in range(n))
    return figures(right / n, n=n, hits=hits, **others)


def broken(decision: Decision) -> set[str]:
    return {reason.setting for reason in decision.reasons if not reason.holds}


# Measured: docs/promotion.md.
@pytest.mark.parametrize(
    ("found", "promote"),
    [
        (figures(0.877, teacher_accuracy=0.907, agreement=0.926), True),
        (figures(0.852, teacher_accuracy=0.9064, agreement=0.894), True),
        (figures(0.985, teacher_accuracy=0.9985, agreement=0.985), True),
        (figures(0.85, teacher_accuracy=0.9985, agreement=0.85), False),
        (figures(0.394, teacher_accuracy=0.9985, agreement=0.394), False),
        (figures(0.38, teacher_accuracy=0.92, agreement=0.40), False),
        (figures(0.25, teacher_accuracy=0.92, agreement=0.25), False),
        (proxy(0.40), False),
    ],
)
def test_default_rules__admit_what_the_method_reaches_and_nothing_worse(found: Figures, promote: bool) -> None:
    assert decide(found, None, DEFAULT).promote is promote
    assert decide(found, None, dataclasses.replace(DEFAULT, enforce_rules=False)).promote


@pytest.mark.parametrize(
    ("found", "rules", "settings", "words"),
    [
        (
            figures(0.80),
            {},
            {"registry.min_accuracy_share"},
            "accuracy 0.8000 is less than 0.9 of the teacher's 0.9000",
        ),
        (figures(0.81), {}, set(), "first champion, accuracy 0.8100, agreement 0.9300"),
        (
            figures(0.85, agreement=0.7),
            {},
            {"registry.min_agreement"},
            "agreement 0.7000 is below registry.min_agreement",
        ),
        (figures(0.85, agreement=0.75), {}, set(), "first champion"),
        (
            figures(0.85),
            {"min_agreement": 0.94},
            {"registry.min_agreement"},
            "0.9300 is below registry.min_agreement 0.94",
        ),
        (
            figures(0.85, ece=0.06),
            {"max_ece": 0.05},
            {"registry.max_ece"},
            "calibration error 0.06 is above registry.max_ece 0.05",
        ),
        (figures(0.85, ece=0.05), {"max_ece": 0.05}, set(), "first champion"),
        (figures(0.85), {"max_ece": 0.05}, {"registry.max_ece"}, "calibration error is not known"),
        (proxy(0.85), {"max_ece": 0.05}, {"registry.max_ece"}, "calibration error is not known"),
        (
            figures(0.85, latency_ms=2.0),
            {"max_latency_ms": 1.5},
            {"registry.max_latency_ms"},
            "milliseconds for one image: 2 is above",
        ),
        (figures(0.85, latency_ms=1.5), {"max_latency_ms": 1.5}, set(), "first champion"),
        (
            figures(0.85),
            {"max_latency_ms": 1.5},
            {"registry.max_latency_ms"},
            "milliseconds for one image is not known",
        ),
        (
            figures(0.85, size_bytes=144_001.0),
            {"max_size_kb": 144},
            {"registry.max_size_kb"},
            "size in kB: 144.001 is above",
        ),
        (figures(0.85, size_bytes=144_000.0), {"max_size_kb": 144}, set(), "first champion"),
        (figures(0.85), {"max_size_kb": 144}, {"registry.max_size_kb"}, "size in kB is not known"),
        (figures(math.nan), {}, {"registry.min_accuracy_share", "registry.margin"}, "accuracy is not known"),
        (figures(None), {}, {"registry.min_accuracy_share", "registry.margin"}, "accuracy is not known"),
        (figures(0.85, agreement=None), {}, {"registry.min_agreement"}, "agreement is not known"),
        (figures(0.85, teacher_accuracy=None), {}, {"registry.min_accuracy_share"}, "the teacher's is not known"),
        (figures(0.85, teacher_accuracy=None), {"min_accuracy_share": 0.0}, set(), "first champion"),
        (figures(0.0, teacher_accuracy=0.0), {}, set(), "first champion"),
        (
            proxy(0.74),
            {},
            {"registry.min_agreement"},
            "(proxy, no real images) 0.7400 is below registry.min_agreement 0.75",
        ),
        (proxy(0.8), {}, set(), "first champion, agreement on synthetic images (proxy, no real images) 0.8000"),
        (proxy(math.nan), {}, {"registry.min_agreement", "registry.margin"}, "(proxy, no real images) is not known"),
    ],
)
def test_decide__each_rule_alone(found: Figures, rules: dict, settings: set[str], words: str) -> None:
    decision = decide(found, None, RegistryConfig(**rules))
    assert broken(decision) == settings
    assert decision.promote is (not settings)
    assert words in decision.summary


def test_decide__a_refused_student_is_no_first_champion() -> None:
    refused = decide(figures(0.85, agreement=0.7), None, RegistryConfig())
    assert refused.reasons[-1].holds
    assert refused.reasons[-1].text == "there is no champion to compare with"


def test_decide__names_all_rules_that_are_broken_with_value_limit_and_setting() -> None:
    found = figures(0.5, agreement=0.5, ece=0.2, latency_ms=9.0, size_bytes=9e6)
    rules = RegistryConfig(max_ece=0.1, max_latency_ms=1, max_size_kb=100)
    decision = decide(found, figures(0.8, version="3"), rules)
    assert not decision.promote
    assert [(reason.setting, reason.value, reason.limit) for reason in decision.reasons] == [
        ("registry.min_accuracy_share", 0.5, pytest.approx(0.81)),
        ("registry.min_agreement", 0.5, 0.75),
        ("registry.max_ece", 0.2, 0.1),
        ("registry.max_latency_ms", 9.0, 1),
        ("registry.max_size_kb", 9000.0, 100),
        ("registry.margin", pytest.approx(-0.3106, abs=1e-3), -0.01),
    ]
    for reason in decision.reasons:
        assert reason.text in decision.summary
        assert reason.setting in reason.text
    forced = decide(found, figures(0.8), dataclasses.replace(rules, enforce_rules=False))
    assert forced.promote
    assert "not within registry.margin 0.01; promoted, as registry.enforce_rules is false; accuracy" in forced.summary
    forced = decide(found, None, dataclasses.replace(rules, enforce_rules=False))
    assert forced.summary.startswith("first champion, accuracy 0.5000, agreement 0.5000; promoted, as registry.enf")


@pytest.mark.parametrize(
    ("new", "old", "rules", "promote"),
    [
        # Equal answers: certain within -z²/(n + z²).
        (answering(9000, 10_000), answering(9000, 10_000), {}, True),
        (answering(90, 100), answering(90, 100), {}, False),
        (answering(90, 100), answering(90, 100), {"margin": 0.03}, True),
        # Right on as many images, but on 500 others each way: -0.0052 at least.
        (answering(9000, 10_000, first=500), answering(9000, 10_000), {}, True),
        (answering(9000, 10_000, first=500), answering(9000, 10_000), {"margin": 0.005}, False),
        (answering(9000, 10_000, first=500), answering(9000, 10_000), {"margin": 0.005, "confidence": 0.9}, True),
        (answering(8950, 10_000), answering(9000, 10_000), {}, True),
        (answering(8850, 10_000), answering(9000, 10_000), {}, False),
        (answering(9200, 10_000), answering(9000, 10_000), {"margin": -0.01}, True),
        (answering(9100, 10_000), answering(9000, 10_000), {"margin": -0.01}, False),
        (answering(9000, 10_000), answering(10_000, 10_000), {"margin": 1.0}, True),
        # Without answers of single images the same figures are less certain.
        (figures(0.895), figures(0.9), {}, False),
        (figures(0.9), figures(0.895), {}, True),
        (figures(0.9, hits=(True,) * 5), figures(0.895, hits=(True,) * 4), {}, True),
        (proxy(0.8), proxy(0.85), {}, False),
        (proxy(0.86), proxy(0.85), {}, True),
    ],
)
def test_decide__against_the_champion(new: Figures, old: Figures, rules: dict, promote: bool) -> None:
    decision = decide(new, old, RegistryConfig(**rules))
    assert decision.promote is promote
    assert broken(decision) == (set() if promote else {"registry.margin"})


def test_decide__the_comparison_in_words() -> None:
    decision = decide(answering(880, 1000), answering(900, 1000, version="3", note="measured again"), DEFAULT)
    assert decision.summary == (
        "refused: accuracy 0.8800 against the champion's 0.9000 (version 3, measured again): -0.0200, at least -0.0287 "
        "at 95 % confidence on the same 1000 images; not within registry.margin 0.01"
    )
    decision = decide(figures(0.88), figures(0.85), DEFAULT)
    assert "on 10000 images, not compared one by one; within registry.margin 0.01" in decision.summary


@pytest.mark.parametrize("champion", [figures(None), figures(math.nan), proxy(0.9)])
def test_decide__says_which_champion_is_not_known_and_why(champion: Figures) -> None:
    champion = dataclasses.replace(champion, version="3", note="its run is gone")
    decision = decide(figures(0.85), champion, DEFAULT)
    assert decision.promote
    assert decision.summary == "accuracy 0.8500, and the champion's is not known (version 3, its run is gone)"


@pytest.mark.parametrize(
    "values",
    [
        {"confidence": 0.5},
        {"confidence": 1.0},
        {"margin": 1.1},
        {"max_ece": -0.1},
        {"max_size_kb": -1.0},
        {"enforce_rules": 1},
    ],
)
def test_rules__out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        RegistryConfig(**values)
