import pytest
import torch

from dfkd_core.data.fitting import FittedImages, resize, resize_and_crop


def ramp(height, width):
    """Return an image whose grey level is the column."""
    return torch.arange(width).byte().expand(1, 1, height, width).contiguous()


def test_photographs_are_fitted_as_torchvision_does_for_imagenet():
    from dfkd_core.common.vision import transforms_v2

    generator = torch.Generator().manual_seed(0)
    usual = transforms_v2.Compose([transforms_v2.Resize(256, antialias=True), transforms_v2.CenterCrop(224)])
    for shape in ((300, 451), (333, 199), (260, 260), (100, 101)):
        photo = torch.randint(0, 256, (1, 3, *shape), generator=generator, dtype=torch.uint8)
        assert torch.equal(resize_and_crop(photo, 224, 224), usual(photo.float()).round().clamp(0, 255).byte())


def test_small_targets_have_no_margin_and_the_right_size_is_left_alone():
    assert torch.equal(resize_and_crop(ramp(10, 30), 10, 10), ramp(10, 30)[..., 10:20])
    photo = ramp(224, 224)
    assert resize_and_crop(photo, 224, 224) is photo
    assert resize_and_crop(ramp(40, 30), 10, 20).shape == (1, 1, 10, 20)


def test_square_images_are_fitted_as_the_built_in_sets_are():
    digits = ramp(28, 28)
    assert torch.equal(resize_and_crop(digits, 32, 32), resize(digits, 32, 32))
    assert resize(digits, 32, 32)[0, 0, 0].sum() == 0
    assert torch.equal(resize_and_crop(ramp(8, 8), 32, 32), resize(ramp(8, 8), 32, 32))


@pytest.mark.parametrize("channels", [1, 3])
def test_fitted_images_are_read_one_index_at_a_time(channels):
    asked = []

    def read(positions):
        asked.append(positions)
        return (ramp(4 + position, 4 + position).repeat(1, 1 + 2 * (position % 2), 1, 1) for position in positions)

    images = FittedImages(read, 6, (channels, 4, 4), resize)
    assert (len(images), images.shape, asked) == (6, (6, channels, 4, 4), [])
    found = images[torch.tensor([5, 0])]
    assert asked == [[5, 0]]
    assert found.shape == (2, channels, 4, 4)
    assert torch.equal(found[1, 0], ramp(4, 4)[0, 0])
