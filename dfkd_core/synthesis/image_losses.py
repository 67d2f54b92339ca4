"""Per-image losses on images and labels, shared by several methods.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

__all__ = ["label_losses", "one_hot_labels", "squared_norms", "total_variation"]


def one_hot_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels as distributions, [n, k]: 1 for the label, 0 for the other classes.

    Args:
        labels: int64 [n] in [0, k).
        num_classes: k.
    """
    return one_hot(labels, num_classes).float()


def label_losses(logits: Tensor, wanted: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy -sum_k y_k log softmax(logits / temperature)_k of each image, [n].

    Args:
        logits: [n, k].
        wanted: The distributions y, [n, k]; rows sum to 1.
        temperature: Divides the logits, above 0.
    """
    return -(wanted * log_softmax(logits.float() / temperature, dim=1)).sum(1)


def total_variation(images: Tensor) -> Tensor:
    """Return mean |x_{i,j+1} - x_{i,j}| + mean |x_{i+1,j} - x_{i,j}| of each image, [n], in grey levels of [0, 1].

    The means are over channels and pairs of neighbours, so the value does not depend on the image size; 0 for a
    direction without neighbours. The anisotropic form of Rudin, Osher and Fatemi, Physica D 60, 1992.

    Args:
        images: [n, c, h, w] in [0, 1].
    """
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1)
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1)
    return right.sum(1) / max(1, right.shape[1]) + down.sum(1) / max(1, down.shape[1])


def squared_norms(images: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Return the mean over pixels of ((x - mean) / std)^2 of each image, [n].

    Args:
        images: [n, c, h, w] in [0, 1].
        mean: Mean that the network subtracts from the pixels; must broadcast to [n, c, h, w].
        std: Standard deviation by which it divides them; must broadcast likewise.
    """
    return ((images - mean) / std).square().flatten(1).mean(1)
