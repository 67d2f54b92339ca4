"""The verdict in words."""

from __future__ import annotations

import pytest

from dfkd_flows.report.verdict import Decided, verdict

FIGURES = {
    "num_images": 1000.0, "student.accuracy": 0.9, "teacher.accuracy": 0.92, "student.agreement": 0.95,
    "student.size_bytes": 5000.0, "teacher.size_bytes": 10000.0,
}  # fmt: skip
RULES = ("accuracy is at least", "first champion")
OPERATIONS = {"teacher": 200, "student": 50}


def decided(**changes: object) -> Decided:
    values = {"model": "m", "version": "3", "promoted": True, "reason": "why", "rules": RULES}
    return Decided(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "answer", "sentence"),
    [
        (decided(), "ship", "Version 3 of m is the champion and keeps all 2 rules."),
        (decided(rules=()), "ship", "Version 3 of m is the champion: why."),
        (decided(rules=("broken: x", *RULES)), "care", "is the champion, although 1 of 3 rules is broken."),
        (
            decided(promoted=False, rules=("broken: x", "broken: y")),
            "hold",
            "not the champion: 2 of 2 rules are broken.",
        ),
        (decided(promoted=False), "hold", "Version 3 of m is not the champion: why."),
        (None, "open", "with: dfkd publish"),
    ],
)
def test_verdict__follows_the_decision(found: Decided | None, answer: str, sentence: str) -> None:
    made = verdict(found, FIGURES, data="photos", operations=OPERATIONS)
    assert made.answer == answer
    assert made.sentences[0].endswith(sentence)
    assert [rule.holds for rule in made.rules] == [
        not text.startswith("broken") for text in (found.rules if found else ())
    ]


def test_verdict__states_quality_and_cost() -> None:
    _, quality, cost = verdict(decided(), FIGURES, data="photos", operations=OPERATIONS).sentences
    assert "On 1,000 real images of photos the student is right on 90.00%, 2.00 points less than its teacher" in quality
    assert (
        cost == "Of its teacher it needs 50% of the size (5 kB against 10 kB), 25% of the operations (50 against 200)."
    )
