import math

import pytest

from dfkd_flows.run.promotion import decide_promotion
from dfkd_flows.settings.params import RegistryConfig

RULES = RegistryConfig(min_agreement=0.5, min_improvement=0.01)


def proxy(agreement: float) -> dict[str, float]:
    return {"proxy.agreement": agreement}


def figures(accuracy: float, agreement: float = 0.9) -> dict[str, float]:
    return {"student.accuracy": accuracy, "student.agreement": agreement}


@pytest.mark.parametrize(
    ("challenger", "champion", "promote", "reason"),
    [
        (figures(0.8), None, True, "first champion"),
        (figures(0.8, 0.4), None, False, "registry.min_agreement"),
        (figures(0.8), figures(0.7), True, "+0.1000"),
        (figures(0.8), figures(0.85), False, "-0.0500"),
        (figures(0.8), figures(0.795), False, "registry.min_improvement"),
        (figures(0.81), figures(0.8), True, "+0.0100"),
        (figures(0.9, 0.4), figures(0.1), False, "registry.min_agreement"),
        (figures(math.nan), None, False, "student.accuracy not known"),
        ({}, None, False, "student.accuracy and student.agreement not known"),
        (figures(0.8), {}, True, "champion's is not known"),
        (proxy(0.8), None, True, "first champion, agreement on synthetic images (proxy, no real images) 0.8000"),
        (proxy(0.8), proxy(0.7), True, "(proxy, no real images) 0.8000 against the champion's 0.7000: +0.1000"),
        (proxy(0.8), proxy(0.85), False, "registry.min_improvement"),
        (proxy(0.4), None, False, "(proxy, no real images) 0.4000 is below registry.min_agreement"),
        (proxy(math.nan), None, False, "proxy.agreement not known"),
        (proxy(0.8), figures(0.9), True, "champion's is not known"),
    ],
)
def test_decide_promotion(challenger, champion, promote, reason) -> None:
    decision = decide_promotion(challenger, champion, RULES)
    assert decision.promote is promote
    assert reason in decision.reason


def test_decide_promotion__says_which_champion_is_not_known_and_why() -> None:
    for champion in ({}, figures(math.nan), proxy(0.9)):
        decision = decide_promotion(figures(0.8), champion, RULES, note="version 3, its run is gone")
        assert decision.promote
        assert decision.reason == "accuracy 0.8000, and the champion's is not known (version 3, its run is gone)"
