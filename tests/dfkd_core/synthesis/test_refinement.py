import dataclasses
import math

import pytest
import torch

from dfkd_core.errors import ConfigError, SynthesisError
from dfkd_core.priors.table import build_prior, prior_names
from dfkd_core.progress import Progress
from dfkd_core.synthesis.refinement import RefinementConfig, choose_of_classes, draw_evenly, refine, target_losses

TARGETS = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])


def mean_loss(teacher, images, temperature=2.0):
    return target_losses(teacher(images), TARGETS, temperature=temperature).mean().item()


def run(teacher, **changes):
    config = dataclasses.replace(RefinementConfig(temperature=2.0, iterations=20), **changes)
    return refine(teacher, TARGETS, image_indices=range(4), seed=0, config=config)


def test_the_loss_is_its_formula():
    logits = torch.tensor([[1.0, 3.0]])
    p = [1 / (1 + math.e), math.e / (1 + math.e)]
    y = torch.tensor([[0.25, 0.75]])
    expected = 0.25 * math.log(0.25 / p[0]) + 0.75 * math.log(0.75 / p[1])
    assert target_losses(logits, y, temperature=2.0).item() == pytest.approx(expected, abs=1e-6)


def test_kl_is_zero_at_the_target_and_finite_at_a_one_hot_target():
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    assert target_losses(logits, logits.softmax(1), temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(target_losses(logits, torch.eye(3)[:1], temperature=1.0)).all()


@pytest.mark.parametrize("prior", prior_names())
def test_refinement_lowers_the_loss(teacher, prior):
    start, end = (run(teacher, prior=prior, iterations=n, learning_rate=0.05) for n in (0, 30))
    assert mean_loss(teacher, end) < 0.5 * mean_loss(teacher, start)


@pytest.mark.parametrize("prior", prior_names())
def test_no_iterations_return_the_starts(teacher, prior):
    images = run(teacher, prior=prior, iterations=0)
    made = build_prior(prior, (1, 8, 8))
    assert torch.equal(images, made.decode(made.start(range(4), seed=0)))


def test_one_step_is_adams(teacher):
    start, end = (run(teacher, prior="pixels", iterations=n, learning_rate=0.01) for n in (0, 1))
    images = start.clone().requires_grad_(True)
    target_losses(teacher(images), TARGETS, temperature=2.0).sum().backward()
    gradient = images.grad
    expected = (start - 0.01 * gradient / (gradient.abs() + 1e-8)).clamp(0, 1)
    torch.testing.assert_close(end, expected, rtol=0, atol=2e-4)


def test_the_activation_term_raises_the_features(teacher):
    plain, active = (run(teacher, activation_weight=weight) for weight in (0.0, 5.0))
    size = [teacher.forward_with_features(images)[1].abs().mean() for images in (plain, active)]
    assert size[1] > size[0]


def test_progress_tells_images_and_loss(teacher):
    reports: list[Progress] = []
    config = RefinementConfig(iterations=20, temperature=2.0)
    refine(teacher, TARGETS, image_indices=range(4), seed=0, config=config, on_progress=reports.append)
    assert [report.done for report in reports] == [2, 4]
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]


def test_a_loss_that_is_not_finite_names_iteration_term_and_images(teacher):
    targets = TARGETS.clone()
    targets[2] = math.nan
    with pytest.raises(SynthesisError, match=r"iteration 1 of 30: kl of 1 images \(12\)"):
        refine(teacher, targets, image_indices=range(10, 14), seed=0, config=RefinementConfig())


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("learning_rate", -1.0), ("prior", "gan")])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        RefinementConfig(**{name: value})


def test_unrefined_share__stays_as_drawn(teacher):
    targets = TARGETS.repeat(2, 1)
    config = RefinementConfig(temperature=2.0, iterations=5, refined_share=0.25)
    images = refine(teacher, targets, image_indices=range(4, 12), seed=0, config=config)
    prior = build_prior(config.prior, (1, 8, 8))
    drawn = prior.decode(prior.start(range(4, 12), seed=0))
    assert (images != drawn).flatten(1).any(1).tolist() == [False, False, False, True] * 2


def test_draws_of_the_wanted_classes_come_first_and_then_the_likeliest() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45], [0.8, 0.2]])
    assert choose_of_classes(probabilities, torch.tensor([1, 0, 1, 0])).tolist() == [2, 0, 4, 1]
    assert choose_of_classes(probabilities, torch.tensor([0, 0])).tolist() == [0, 1]


def test_more_draws_even_out_the_classes_and_one_draw_is_the_prior(teacher):
    targets = torch.eye(3).repeat(84, 1)[:250]
    prior, indices = build_prior("mosaic", (1, 8, 8)), range(250)

    def drawn(draws_per_image):
        config = RefinementConfig(prior="mosaic", refined_share=0.0, draws_per_image=draws_per_image)
        return refine(teacher, targets, image_indices=indices, seed=0, config=config)

    assert torch.equal(drawn(1), prior.decode(prior.start(indices, seed=0)))
    fitting = [(teacher.label(drawn(count)).argmax(1) == targets.argmax(1)).sum().item() for count in (1, 2, 8)]
    assert fitting == sorted(fitting)
    assert fitting[-1] > 1.5 * fitting[0]
    assert torch.equal(drawn(4), drawn(4))
    assert len(drawn(4).flatten(1).unique(dim=0)) == 250


def test_a_chosen_draw_does_not_depend_on_the_images_around_it(teacher):
    prior, settings = build_prior("mosaic", (1, 8, 8)), {"seed": 0, "draws_per_image": 3}
    whole = draw_evenly(teacher, prior, range(240, 270), **settings)
    parts = [draw_evenly(teacher, prior, part, **settings) for part in (range(240, 247), [247], range(248, 270))]
    assert torch.equal(torch.cat(parts), whole)


def test_refined_images_take_no_part_in_the_choice(teacher):
    prior = build_prior("mosaic", (1, 8, 8))
    drawn = [index for index in range(250) if index % 2 == 0]
    images = draw_evenly(teacher, prior, drawn, seed=0, draws_per_image=8, refined_share=0.5)
    counts = torch.bincount(teacher.label(images).argmax(1), minlength=3)
    as_drawn = torch.bincount(teacher.label(prior.decode(prior.start(drawn, seed=0))).argmax(1), minlength=3)
    assert counts.sum() == 125
    assert counts.float().std() < as_drawn.float().std()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prior": "fourier"},
        {"smoothing_px": 1.0},
        {"activation_weight": 0.01},
        {"refined_share": 0.5},
    ],
)
def test_passes_that_memory_limits_change_images_by_rounding_alone(teacher, limit_passes, changes):
    whole = run(teacher, **changes)
    limit_passes(teacher, 1)
    torch.testing.assert_close(run(teacher, **changes), whole, rtol=0, atol=1e-3)
