"""The search of `dfkd tune`: what it tries, what it keeps, when it ends and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dfkd_core.common.compute import CPU
from dfkd_core.data.datasets import DataConfig, load_dataset
from dfkd_core.errors import ConfigError, DistillationError
from dfkd_core.evaluation.proxy import proxy_score
from dfkd_core.models.storage import save_model
from dfkd_core.models.teacher import load_teacher
from dfkd_core.statistics.estimation import estimate_statistics
from dfkd_core.statistics.features import save_statistics
from dfkd_core.teachers.training import TeacherConfig, train_teacher
from dfkd_flows.settings.overrides import apply_overrides
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten, load_params
from dfkd_flows.tune.results import apply_best, assignments, open_search, render
from dfkd_flows.tune.search import Search, Tried
from dfkd_flows.tune.space import Domain, LogRange, reduced, search_space
from dfkd_tasks.caching.workspace import TeacherFiles, reference
from dfkd_tasks.stages.tuning import try_settings

FILES = TeacherFiles("default")
TEACHER, STATISTICS = FILES.network, FILES.statistics
SPACE: dict[str, Domain] = {
    "distillation.temperature": LogRange(1.0, 20.0),
    "distillation.mixing": ("none", "mixup"),
}
TINY = ["synthesis.num_images=100", "distillation.epochs=1"]


class Score:
    """Scores by temperature, higher with every seed, and counts calls."""

    def __init__(self, *, noise: float = 0.001, stop_at: int | None = None) -> None:
        self.calls: list[tuple[dict[str, Any], int]] = []
        self._noise, self._stop_at = noise, stop_at

    def __call__(self, changes: Mapping[str, Any], seed_offset: int) -> float:
        if len(self.calls) == self._stop_at:
            raise KeyboardInterrupt
        self.calls.append((dict(changes), seed_offset))
        return 0.5 + changes.get("distillation.temperature", 4.0) / 100 + self._noise * (seed_offset % 2)


class Clock:
    """A clock that goes on by a step whenever it is read."""

    def __init__(self, step: float) -> None:
        self._now, self._step = 0.0, step

    def __call__(self) -> float:
        self._now += self._step
        return self._now


@pytest.fixture
def open_it(tmp_path: Path) -> Callable[..., Search]:
    return lambda name="one": Search(tmp_path / f"{name}.journal", SPACE, flatten(Params()), seed=0)


@pytest.fixture
def teacher(project: Path) -> None:
    """Put a teacher and its statistics where the stages do."""
    trained = train_teacher(TeacherConfig(epochs=2), load_dataset(DataConfig(dataset="digits"), "train"), seed=0)
    save_model(TEACHER, trained.classifier)
    save_statistics(STATISTICS, estimate_statistics(load_teacher(TEACHER), Params().statistics, seed=0))


def test_first_trial__is_what_there_is(open_it: Callable[..., Search]) -> None:
    score = Score()
    open_it().run(score, seconds=60, max_trials=3)
    assert score.calls[0] == ({}, 0)
    assert all(changes for changes, offset in score.calls[1:] if offset == 0)


def test_further_seeds__compare_the_best_with_what_there_is(open_it: Callable[..., Search]) -> None:
    search, score = open_it(), Score()
    search.run(score, seconds=60, max_trials=5)
    best = search.ranked()[0].changes
    assert score.calls[5:] == [(changes, offset) for offset in (1, 2, 3) for changes in ({}, best)]
    assert search.is_clearly_better()
    assert "dfkd run --set distillation.temperature=" in render(search, Params(), "default")


def test_difference_within_chance__is_not_clear(open_it: Callable[..., Search]) -> None:
    search = open_it()
    search.run(Score(noise=0.5), seconds=60, max_trials=5)
    assert not search.is_clearly_better()
    assert "No setting was found that is clearly better." in render(search, Params(), "default")
    assert "dfkd run" not in render(search, Params(), "default")


def test_interrupted__goes_on_as_an_undisturbed_search(open_it: Callable[..., Search]) -> None:
    whole = Score()
    open_it("whole").run(whole, seconds=60, max_trials=6)
    first, second = Score(stop_at=2), Score()
    with pytest.raises(KeyboardInterrupt):
        open_it("parts").run(first, seconds=60, max_trials=6)
    assert len(open_it("parts").tried()) == 2
    open_it("parts").run(second, seconds=60, max_trials=6)
    assert first.calls + second.calls == whole.calls


def test_finished__is_not_done_again(open_it: Callable[..., Search]) -> None:
    open_it().run(Score(), seconds=60, max_trials=4)
    again = Score()
    open_it().run(again, seconds=60, max_trials=4)
    assert again.calls == []


def test_failed_settings__are_noted_and_the_search_goes_on(open_it: Callable[..., Search]) -> None:
    def fail(changes: Mapping[str, Any], seed_offset: int) -> float:
        if changes:
            raise DistillationError("The loss is not finite")
        return 0.5

    told: list[Tried] = []
    search = open_it()
    search.run(fail, seconds=60, max_trials=3, on_tried=told.append)
    assert [tried.error for tried in told] == ["", "The loss is not finite", "The loss is not finite"]
    assert "1 settings; 2 more failed" in render(search, Params(), "default")
    assert "No setting was found that is better" in render(search, Params(), "default")


def test_what_there_is_fails__is_an_error(open_it: Callable[..., Search]) -> None:
    def fail(changes: Mapping[str, Any], seed_offset: int) -> float:
        raise DistillationError("The loss is not finite")

    with pytest.raises(DistillationError):
        open_it().run(fail, seconds=60)


def test_no_time__is_left_for_more_than_the_first(open_it: Callable[..., Search]) -> None:
    search, score = open_it(), Score()
    search.run(score, seconds=1, clock=Clock(step=10))
    assert score.calls == [({}, 0)]


def test_budget__ends_the_search(open_it: Callable[..., Search]) -> None:
    search, score = open_it(), Score()
    search.run(score, seconds=100, clock=Clock(step=10))
    # Read once for the deadline and once before each trial and each repeat.
    assert 2 < len(score.calls) <= 10


def test_interrupted_before_further_seeds__says_so(open_it: Callable[..., Search]) -> None:
    search = open_it()
    with pytest.raises(KeyboardInterrupt):
        search.run(Score(stop_at=5), seconds=60, max_trials=5)
    assert "Continue with the same command." in render(search, Params(), "default")


def test_space__holds_what_there_is_and_what_the_method_has() -> None:
    soft_target = search_space(Params())
    assert len(soft_target) == 10
    unusual = apply_overrides(Params(), ["distillation.temperature=50", "distillation.augmentation.shift=0.2"])
    assert search_space(unusual)["distillation.temperature"] == LogRange(0.5, 50.0)
    shifts = search_space(unusual)["distillation.augmentation.shift"]
    assert isinstance(shifts, tuple)
    assert 0.2 in shifts
    boundary = search_space(apply_overrides(Params(), ["synthesis.method=boundary"]))
    assert "synthesis.methods.boundary.descent.prior" in boundary
    assert len(boundary) == 9
    assert len(search_space(apply_overrides(Params(), ["synthesis.method=noise"]))) == 5
    steps = "synthesis.methods.soft_target.refinement"
    coefficients = ["prior=fourier", "toned_share=0", "smoothing_px=0"]
    fourier = search_space(apply_overrides(Params(), [f"{steps}.{change}" for change in coefficients]))
    assert f"{steps}.toned_share" not in fourier


def test_space__does_not_hold_the_held_out_prior() -> None:
    with pytest.raises(ConfigError, match="would always seem good"):
        search_space(apply_overrides(Params(), ["synthesis.methods.soft_target.refinement.prior=mosaic"]))


def test_space__values_are_allowed() -> None:
    for path, domain in search_space(Params()).items():
        values = (domain.low, domain.high) if isinstance(domain, LogRange) else domain
        for value in values:
            apply_overrides(Params(), [f"{path}={value}"])


def test_reduced__is_never_larger() -> None:
    assert reduced(Params()).synthesis.num_images == 6000
    tiny = apply_overrides(Params(), TINY)
    assert reduced(tiny) == tiny


def test_search_with_a_teacher__and_apply(
    teacher: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dfkd_tasks.stages.tuning.proxy_score", partial(proxy_score, num_images=500))
    params = apply_overrides(load_params(), TINY)

    def score(changes: Mapping[str, Any], seed_offset: int) -> float:
        own = apply_overrides(params, assignments(changes))
        inputs = reference(TEACHER), reference(STATISTICS), own.synthesis, own.distillation
        found = try_settings.fn(*inputs, seed=seed_offset, compute=CPU)
        assert 0 <= found <= 1
        # Students of one epoch are alike; what there is has to be the worst.
        return found if changes else found - 1

    search = open_search(params)
    search.run(score, seconds=1e6, max_trials=2)
    assert len(open_search(params).tried()) == 2
    assert open_search(apply_overrides(params, ["seed=1"])).tried() == []
    best = search.ranked()[0].changes
    apply_best(search, load_params(), "default")
    changed = flatten(load_params())
    assert {path: changed[path] for path in best} == best
    assert "Make the student with: dfkd run" in capsys.readouterr().out


def test_apply__writes_nothing_that_is_not_clearly_better(project: Path, open_it: Callable[..., Search]) -> None:
    search = open_it()
    search.run(Score(noise=0.5), seconds=60, max_trials=4)
    before = Path("params.yaml").read_bytes()
    apply_best(search, load_params(), "default")
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.slow
def test_command__searches_and_does_not_repeat_itself(make_workspace: Any, small: dict[str, Any]) -> None:
    workspace = make_workspace("tune")
    settings = [word for path, value in small.items() for word in ("--set", f"{path}={value}")]
    first = workspace.run("dfkd", "tune", "--trials", "2", *settings)
    assert "2 settings tried" in first
    assert "Chosen without real data" in first
    again = workspace.run("dfkd", "tune", "--trials", "2", "--apply")
    assert "0 settings tried (reused)" in again
    assert first.split("rank")[1].split("Chosen")[0] == again.split("rank")[1].split("Chosen")[0]
