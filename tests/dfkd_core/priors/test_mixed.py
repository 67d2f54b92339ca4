import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.mixed import MixedPrior
from dfkd_core.priors.photos import PhotoPrior
from dfkd_core.priors.procedural import ProceduralPrior, num_painting_draws, paint_scenes
from dfkd_core.priors.scene import num_scene_draws, plan_scenes

SHAPE = (1, 16, 16)


def equal_images(first, second):
    return (first - second).abs().amax((1, 2, 3)) < 1e-4


def test_a_third_of_the_images_each_is_procedural_a_crop_and_a_cut_out():
    mixed = MixedPrior(SHAPE).start(range(600), seed=3)
    is_procedural = equal_images(mixed, ProceduralPrior(SHAPE).start(range(600), seed=3))
    is_crop = equal_images(mixed, PhotoPrior(SHAPE).start(range(600), seed=3))
    assert not (is_procedural & is_crop).any()
    for chosen in (is_procedural, is_crop, ~is_procedural & ~is_crop):
        assert abs(chosen.float().mean() - 1 / 3) < 0.07


def test_a_scene_without_shapes_shows_its_first_material_or_one_colour():
    rows = uniform_rows(0, "x", range(400), (num_painting_draws(SHAPE),))
    materials = torch.rand(400, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    images = paint_scenes(rows, SHAPE[1:], 1, materials=materials)
    scene = plan_scenes(rows[:, : num_scene_draws(1)], 1)
    is_untoned = (scene.gain == 1) & (scene.offset == 0) & (scene.blur == 0) & (scene.grain == 0)
    bare = (is_untoned & (scene.num_shapes == 0)).nonzero()[:, 0]
    assert len(bare) > 5
    torch.testing.assert_close(images[bare], materials[bare, 0])


# The others show colours alone: their ground is of one, and so are their shapes, if any.
def test_shapes_are_cut_out_of_the_materials():
    rows = uniform_rows(0, "x", range(100), (num_painting_draws(SHAPE),))
    flat = torch.full((100, 2, *SHAPE), 0.5)
    striped = flat + 0.3 * (torch.arange(16) % 2 - 0.5)
    smooth, rough = (
        paint_scenes(rows, SHAPE[1:], 1, materials=materials).diff(dim=3).abs().mean((1, 2, 3))
        for materials in (flat, striped)
    )
    assert (rough > smooth + 0.02).float().mean() > 0.4
