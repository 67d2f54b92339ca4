"""What holds for every image prior."""

import pytest
import torch

from dfkd_core.priors import photos
from dfkd_core.priors.table import build_prior, prior_names, shows_photographs

SHAPES = [(1, 32, 32), (3, 16, 16), (2, 9, 14)]

pytestmark = pytest.mark.parametrize("name", prior_names())


@pytest.mark.parametrize("shape", SHAPES)
def test_decodes_to_images_of_the_asked_shape_in_the_unit_range(name, shape):
    prior = build_prior(name, shape)
    images = prior.decode(prior.start(range(20), seed=1))
    assert images.shape == (20, *shape)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1


def test_equal_layouts_give_equal_bytes(name):
    prior = build_prior(name, (1, 16, 16))
    assert torch.equal(prior.start(range(30), seed=1), prior.start(range(30), seed=1))


def test_an_image_does_not_depend_on_the_batch_around_it(name):
    prior = build_prior(name, (1, 16, 16))
    together = prior.start(range(40), seed=1)
    alone = torch.cat([prior.start([i], seed=1) for i in range(40)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_seed_stream_and_index_address_the_draws(name):
    prior = build_prior(name, (1, 16, 16))
    first = prior.start([5], seed=1)
    assert not torch.equal(first, prior.start([6], seed=1))
    assert not torch.equal(first, prior.start([5], seed=2))
    assert not torch.equal(first, prior.start([5], seed=1, stream="other"))


def test_global_generator_is_left_alone(name):
    before = torch.get_rng_state()
    build_prior(name, (1, 16, 16)).start(range(4), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_every_image_through_decode(name):
    prior = build_prior(name, (1, 16, 16))
    parameters = prior.start(range(6), seed=1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.decode(parameters).sum(), parameters)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_projection_brings_images_back_into_the_unit_range(name):
    prior = build_prior(name, (1, 16, 16))
    parameters = prior.start(range(6), seed=1) + 3
    prior.project(parameters)
    images = prior.decode(parameters)
    assert images.min() >= 0
    assert images.max() <= 1


def test_no_images_give_an_empty_tensor(name):
    assert len(build_prior(name, (1, 16, 16)).start([], seed=1)) == 0


def test_what_is_said_of_photographs_is_what_happens_without_them(name, monkeypatch):
    class NoPhotographs(Exception):
        pass

    def missing(photograph):
        raise NoPhotographs

    monkeypatch.setattr(photos, "shipped_file", missing)
    photos.load_atlas.cache_clear()
    needs_them = False
    try:
        build_prior(name, (1, 8, 8)).start(range(20), seed=0)
    except NoPhotographs:
        needs_them = True
    assert shows_photographs(name) is needs_them
