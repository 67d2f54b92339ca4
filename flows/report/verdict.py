"""Whether to ship a student, in words for readers who do not know the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dfkd_tasks.records.forms import count, kilobytes, milliseconds, share
from dfkd_tasks.report.facts import Answer, Rule, Verdict

__all__ = ["Decided", "verdict"]

_BROKEN = "broken: "
_TITLES: Mapping[Answer, str] = {
    "ship": "ship it",
    "care": "ship it with care",
    "hold": "do not ship it",
    "open": "not decided",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The decision on a student that is in the registry."""

    model: str
    version: str
    promoted: bool
    reason: str
    rules: tuple[str, ...] = ()
    """Outcome of every rule, in words."""


def verdict(
    decided: Decided | None, figures: Mapping[str, float], *, data: str, operations: Mapping[str, int | None]
) -> Verdict:
    """Return the verdict.

    Args:
        decided: The decision; None if the student is not registered.
        figures: Its figures by dotted name.
        data: Short name of the evaluated images.
        operations: Multiply-adds of `teacher` and `student`.
    """
    rules = tuple(_rule(text) for text in decided.rules) if decided else ()
    answer = _answer(decided, rules)
    sentences = (_decision(decided, rules), *_quality(figures, data), *_cost(figures, operations))
    return Verdict(answer=answer, title=_TITLES[answer], sentences=tuple(filter(None, sentences)), rules=rules)


def _answer(decided: Decided | None, rules: Sequence[Rule]) -> Answer:
    if decided is None:
        return "open"
    if not decided.promoted:
        return "hold"
    return "ship" if all(rule.holds for rule in rules) else "care"


def _rule(text: str) -> Rule:
    return Rule(holds=not text.startswith(_BROKEN), text=text.removeprefix(_BROKEN))


def _decision(decided: Decided | None, rules: Sequence[Rule]) -> str:
    if decided is None:
        return (
            "The student is not in the registry, so no rule has judged it. Register what params.yaml describes with: "
            "dfkd publish"
        )
    name = f"Version {decided.version} of {decided.model}"
    broken = _broken(rules)
    if not decided.promoted:
        return f"{name} is not the champion: {broken or decided.reason}."
    if broken:
        return f"{name} is the champion, although {broken}."
    return f"{name} is the champion{f' and keeps all {len(rules)} rules' if rules else f': {decided.reason}'}."


def _broken(rules: Sequence[Rule]) -> str:
    """Return how many rules are broken, empty for none."""
    number = sum(not rule.holds for rule in rules)
    return f"{number} of {len(rules)} rules {'is' if number == 1 else 'are'} broken" if number else ""


def _quality(figures: Mapping[str, float], data: str) -> Iterator[str]:
    images = count(figures.get("num_images", 0))
    if "proxy.agreement" in figures:
        yield (
            f"No real images were given. On {images} synthetic images the student answers like its teacher on "
            f"{share(figures['proxy.agreement'])}."
        )
        return
    if "student.accuracy" not in figures or "teacher.accuracy" not in figures:
        return
    student, teacher = figures["student.accuracy"], figures["teacher.accuracy"]
    lost = 100 * (teacher - student)
    against = f"{abs(lost):.2f} points {'less' if lost > 0 else 'more'} than" if lost else "as often as"
    yield (
        f"On {images} real images of {data} the student is right on {share(student)}, {against} its teacher with "
        f"{share(teacher)}. It answers like its teacher on {share(figures['student.agreement'])}."
    )


def _cost(figures: Mapping[str, float], operations: Mapping[str, int | None]) -> Iterator[str]:
    parts = [
        _part("the size", figures.get("student.size_bytes"), figures.get("teacher.size_bytes"), kilobytes),
        _part("the operations", operations["student"], operations["teacher"], count),
        _part(
            "the time for one image", figures.get("latency.student.batch_1_ms"),
            figures.get("latency.teacher.batch_1_ms"), milliseconds,
        ),
    ]  # fmt: skip
    known = [part for part in parts if part]
    if known:
        yield f"Of its teacher it needs {', '.join(known)}."


def _part(what: str, own: float | None, teachers: float | None, form: Callable[[float], str]) -> str:
    if not own or not teachers:
        return ""
    return f"{own / teachers:.0%} of {what} ({form(own)} against {form(teachers)})"
