import torch

from dfkd_core.priors.blurring import blur_maps


def test_blur_spreads_a_point_over_its_neighbours_and_leaves_unweighted_images_alone():
    point = torch.zeros(2, 1, 5, 5)
    point[:, :, 2, 2] = 1
    blurred = blur_maps(point.clone(), torch.tensor([0.25, 0.0]))
    line = torch.tensor([0, 0.25, 0.5, 0.25, 0])
    torch.testing.assert_close(blurred[0, 0], line[:, None] * line)
    assert torch.equal(blurred[1], point[1])


def test_blur_keeps_a_constant_image_up_to_its_border():
    torch.testing.assert_close(
        blur_maps(torch.full((1, 2, 4, 3), 0.7), torch.tensor([0.3])), torch.full((1, 2, 4, 3), 0.7)
    )
