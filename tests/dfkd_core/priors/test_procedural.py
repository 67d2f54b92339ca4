import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.procedural import ProceduralPrior
from dfkd_core.priors.scene import MAX_SHAPES, num_scene_draws, num_shape_draws, place_shapes, plan_scenes


def scenes(n, channels):
    scene = plan_scenes(uniform_rows(0, "scene", range(n), (num_scene_draws(channels),)), channels)
    rows = uniform_rows(0, "shapes", range(n), (MAX_SHAPES, num_shape_draws(channels)))
    return scene, place_shapes(rows, scene, channels)


def test_images_vary_and_few_are_blank():
    images = ProceduralPrior((1, 32, 32)).start(range(400), seed=0)
    assert (images.flatten(1).std(1) < 0.01).float().mean() < 0.03
    means = images.mean((1, 2, 3))
    assert means.min() < 0.1
    assert means.max() > 0.9


def test_every_image_has_its_planned_number_of_shapes_in_layers_from_zero():
    scene, shapes = scenes(100, 1)
    assert torch.bincount(shapes.image, minlength=100).tolist() == scene.num_shapes.tolist()
    assert shapes.layer[shapes.image == 3].sort().values.tolist() == list(range(int(scene.num_shapes[3])))
    assert sum(shapes.kind_counts) == len(shapes.image)


def test_layouts_reach_from_no_shape_to_the_most():
    scene, _ = scenes(1000, 1)
    assert scene.num_shapes.min() == 0
    assert scene.num_shapes.max() == MAX_SHAPES


def test_shapes_have_two_colours_with_a_value_per_channel_off_the_ground():
    scene, shapes = scenes(200, 1)
    assert shapes.colours.shape[1:] == (2, 1)
    own = ~scene.is_one_material[shapes.image]
    ground = scene.ground_colours.mean((1, 2))[shapes.image]
    assert ((shapes.colours[:, 0, 0] - ground).abs()[own] > 0.249).all()
    assert scenes(5, 3)[1].colours.shape[1:] == (2, 3)


def test_some_images_are_mirror_images_of_themselves():
    images = ProceduralPrior((1, 32, 32)).start(range(300), seed=0)
    difference = (images - images.flip(3)).abs().mean((1, 2, 3))
    contrast = images.flatten(1).std(1)
    assert 0.05 < ((difference < 0.02) & (contrast > 0.1)).float().mean() < 0.5


def test_channels_differ_where_there_are_several():
    images = ProceduralPrior((3, 16, 16)).start(range(50), seed=0)
    assert ((images - images.mean(1, keepdim=True)).abs().mean((1, 2, 3)) > 0.02).float().mean() > 0.5


def test_a_larger_image_shows_the_same_scene_to_a_coarse_eye():
    # Sizes share the scene's numbers, not the texture's, so the likeness is loose.
    small = ProceduralPrior((1, 16, 16)).start(range(60), seed=0).mean((1, 2, 3))
    large = ProceduralPrior((1, 48, 48)).start(range(60), seed=0).mean((1, 2, 3))
    assert torch.corrcoef(torch.stack([small, large]))[0, 1] > 0.9
