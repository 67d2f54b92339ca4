import math

import pytest
import torch

from dfkd_core.synthesis.image_losses import label_losses, one_hot_labels, squared_norms, total_variation


def test_one_hot_labels__are_distributions():
    labels = one_hot_labels(torch.tensor([1, 0]), 4)
    assert torch.equal(labels, torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))


def test_label_losses__are_the_cross_entropy_at_the_temperature():
    logits, wanted = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.75, 0.25]])
    p = math.e / (1 + math.e)
    expected = -(0.75 * math.log(p) + 0.25 * math.log(1 - p))
    assert label_losses(logits, wanted, temperature=2.0).item() == pytest.approx(expected, rel=1e-6)


def test_total_variation__by_hand():
    image = torch.tensor([[[[0.0, 0.5], [1.0, 0.5]]]])
    # Right: 0.5 and 0.5; down: 1.0 and 0.0.
    assert total_variation(image).tolist() == [0.5 + 0.5]


def test_total_variation__agrees_with_a_loop():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for image, found in zip(images.tolist(), total_variation(images).tolist()):
        right = [abs(image[c][y][x + 1] - image[c][y][x]) for c in range(3) for y in range(4) for x in range(4)]
        down = [abs(image[c][y + 1][x] - image[c][y][x]) for c in range(3) for y in range(3) for x in range(5)]
        assert found == pytest.approx(sum(right) / len(right) + sum(down) / len(down), rel=1e-5)


def test_total_variation__of_one_pixel_is_zero():
    assert total_variation(torch.rand(2, 1, 1, 1)).tolist() == [0, 0]


def test_squared_norms__are_those_of_the_normalised_image():
    image = torch.tensor([[[[0.5, 0.7]], [[0.1, 0.2]]]])
    mean, std = torch.tensor([0.5, 0.2]).view(1, 2, 1, 1), torch.tensor([0.2, 0.1]).view(1, 2, 1, 1)
    assert squared_norms(image, mean=mean, std=std).item() == pytest.approx((0 + 1 + 1 + 0) / 4, abs=1e-6)
