"""The operations of a forward pass, counted while it runs."""

from __future__ import annotations

import torch

from dfkd_core.common.pixels import grey_images
from dfkd_core.models.classifier import Classifier

__all__ = ["multiply_adds"]


def multiply_adds(classifier: Classifier) -> int:
    """Return the multiply-adds of one image: those of convolutions, matrix products and attention.

    Args:
        classifier: It is put into eval mode, and is on the CPU.

    Example:
        >>> from dfkd_core import ModelCard, build_classifier
        >>> from dfkd_core.evaluation.operations import multiply_adds
        >>> card = ModelCard(
        ...     network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer="fc1"
        ... )
        >>> multiply_adds(build_classifier(card, seed=0))
        416520
    """
    # Imported here, as it takes a while and only reports need it.
    from torch.utils.flop_counter import FlopCounterMode

    classifier.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        classifier(grey_images(1, classifier.card.image_shape))
    # It counts a multiplication and an addition as two.
    return int(counter.get_total_flops()) // 2
