"""Checks on finished shards and sets: images from which a student cannot learn are rejected during synthesis.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dfkd_core.errors import SynthesisError
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.transfer_set.shards import Shard

__all__ = ["balance_note", "check_finite", "check_set", "check_shard"]

MAX_SHARE_OF_DUPLICATES = 0.5
"""Largest share of a shard's images that may be copies of other images in it."""
SATURATED_PROBABILITY = 0.9999
"""An output with a probability above this, at temperature 1, carries no information beyond the class."""
MAX_SHARE_SATURATED = 0.99
"""Largest share of a shard's images that may have a saturated output."""
UNIFORM_TOLERANCE = 0.01
"""An output whose largest probability is at most (1 + this) / k carries no information about the image."""
BALANCE_TOLERANCE = 0.2
"""Largest relative deviation of a class's number of images from the uniform number that is not reported."""
LEAST_SHARE_AS_DRAWN = 0.1
"""The same for a set of which a part stays as drawn: smallest number of a class's images, relative to the uniform one.

Such images keep the classes that the teacher gives them, so a deviation is expected.
"""

# With fewer images per class and fewer in total, an apparent fault may be chance.
_IMAGES_PER_CLASS = 10
_IMAGES = 1000
_CLASSES_SHOWN = 5


def check_finite(what: str, values: Tensor, *, shard_index: int, image_indices: range) -> None:
    """Check that a batch holds no NaN or Inf.

    Args:
        what: Name of the values, for the message.
        values: [n, ...].
        shard_index: Index of the shard, for the message.
        image_indices: The batch's positions in the whole set.

    Raises:
        SynthesisError: A value is not finite.
    """
    bad = int((~torch.isfinite(values.flatten(1)).all(1)).sum())
    if bad:
        raise SynthesisError(
            f"Shard {shard_index}: {what} of {bad} of the images {image_indices.start} to {image_indices.stop - 1} "
            "hold NaN or Inf. Lower the method's learning_rate or check the teacher's weights."
        )


def check_shard(shard: Shard, *, shard_index: int, config: SynthesisConfig) -> None:
    """Check that a student can learn from a shard.

    Shards with fewer than 10 images per class and fewer than 1,000 in total are not checked.

    Args:
        shard: The finished shard.
        shard_index: Index of the shard, for the message.
        config: Its method, whose settings the message names.

    Raises:
        SynthesisError: The teacher predicts one class for all images, most images are copies of others, the teacher's
            outputs are saturated or uniform, or the soft targets are uniform.
    """
    num_images, num_classes = shard.teacher_logits.shape
    if not _is_judged(num_images, num_classes):
        return
    histogram = torch.bincount(shard.teacher_logits.argmax(1), minlength=num_classes).tolist()
    fault = next((text for text in (_one_class(histogram, config), *_faults(shard, config)) if text), None)
    if fault:
        raise SynthesisError(f"Shard {shard_index}: {fault}")


def check_set(class_histogram: Sequence[int], *, config: SynthesisConfig) -> None:
    """Check that the teacher predicts more than one class in a whole set, whose shards may be too small for the check.

    Args:
        class_histogram: Number of images for which the teacher predicts each class, [k].
        config: The set's method, whose settings the message names.

    Raises:
        SynthesisError: The teacher predicts one class for all images.
    """
    fault = _one_class(class_histogram, config)
    if fault and _is_judged(sum(class_histogram), len(class_histogram)):
        raise SynthesisError(f"Transfer set: {fault}")


def balance_note(class_histogram: Sequence[int], *, method: str, method_config: Mapping[str, Any]) -> str | None:
    """Return a sentence about the classes that deviate by more than 20 % from the uniform share, None if none does.

    Of a set in which a part of the images stays as drawn, only classes with less than a tenth of this share count.

    Args:
        class_histogram: Number of images for which the teacher predicts each class, [k].
        method: The set's method.
        method_config: Its configuration as stored in a manifest; the sentence names a setting to change.
    """
    num_images, num_classes = sum(class_histogram), len(class_histogram)
    even = num_images / num_classes
    settings = _part(_part(method_config, "methods"), method)
    drawn = _share_as_drawn(settings)
    off = [
        k
        for k, count in enumerate(class_histogram)
        if (count < LEAST_SHARE_AS_DRAWN * even if drawn else abs(count - even) > BALANCE_TOLERANCE * even)
    ]
    if not off:
        return None
    worst = sorted(sorted(off, key=lambda k: -abs(class_histogram[k] - even))[:_CLASSES_SHOWN])
    shares = ", ".join(f"{100 * class_histogram[k] / num_images:.1f} %" for k in worst)
    more = f" and {len(off) - len(worst)} more" if len(off) > len(worst) else ""
    return (
        f"{'classes' if len(off) > 1 else 'class'} {', '.join(map(str, worst))}{more} "
        f"{'have' if len(off) > 1 else 'has'} {shares} of the images against {100 / num_classes:.1f} %, by the "
        f"teacher's answers{_balancing(method, settings, drawn)}"
    )


def _is_judged(num_images: int, num_classes: int) -> bool:
    return num_classes > 1 and num_images >= min(_IMAGES_PER_CLASS * num_classes, _IMAGES)


def _one_class(class_histogram: Sequence[int], config: SynthesisConfig) -> str | None:
    num_images, num_classes = sum(class_histogram), len(class_histogram)
    if num_classes == 1 or max(class_histogram) < num_images:
        return None
    found = class_histogram.index(num_images)
    return (
        f"the teacher predicts class {found} of {num_classes} for all {num_images} images, so a student cannot learn "
        f"the others; at least two classes are needed. {_more_varied(config)}"
    )


def _faults(shard: Shard, config: SynthesisConfig) -> Iterator[str | None]:
    probabilities = shard.teacher_logits.double().softmax(1)
    yield _duplicates(shard.images, config)
    yield _saturated(probabilities, config)
    yield _uniform("teacher's outputs", probabilities, _more_varied(config))
    yield _uniform("soft targets", shard.soft_targets, _sharper(config))


def _duplicates(images: Tensor, config: SynthesisConfig) -> str | None:
    rows = images.flatten(1).contiguous().numpy()
    distinct = len({hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows})
    share = 1 - distinct / len(rows)
    if share <= MAX_SHARE_OF_DUPLICATES:
        return None
    return (
        f"{len(rows) - distinct} of {len(rows)} images ({share:.1%}) are copies of others; at most "
        f"{MAX_SHARE_OF_DUPLICATES:.0%} are allowed. {_more_varied(config)}"
    )


def _saturated(probabilities: Tensor, config: SynthesisConfig) -> str | None:
    share = (probabilities.amax(1) > SATURATED_PROBABILITY).double().mean().item()
    if share <= MAX_SHARE_SATURATED:
        return None
    return (
        f"the teacher is certain ({SATURATED_PROBABILITY} or more for one class) of {share:.1%} of the images; at most "
        f"{MAX_SHARE_SATURATED:.0%} are allowed, since such outputs carry only the class. {_less_certain(config)}"
    )


def _uniform(what: str, probabilities: Tensor, advice: str) -> str | None:
    num_classes = probabilities.shape[1]
    largest, limit = probabilities.amax().item(), (1 + UNIFORM_TOLERANCE) / num_classes
    if largest > limit:
        return None
    return (
        f"the largest probability in the {what} is {largest:.6f}, within {UNIFORM_TOLERANCE:.0%} of {num_classes} "
        f"equal classes, so they carry no information about the images; more than {limit:.6f} is needed. {advice}"
    )


def _more_varied(config: SynthesisConfig) -> str:
    path = config.steps_path
    if not path:
        return f"Set synthesis.method to soft_target or raise synthesis.methods.{config.method}.std."
    return f"Raise {path}.iterations or change its prior ({path}.prior)."


def _less_certain(config: SynthesisConfig) -> str:
    path = config.steps_path
    if not path:
        return f"Set synthesis.method to soft_target or lower synthesis.methods.{config.method}.std."
    return f"Lower {path}.iterations or {path}.learning_rate."


def _share_as_drawn(settings: Mapping[str, Any]) -> float:
    """Return the share of images whose class is not chosen, by a method's settings."""
    # A manifest that another program wrote may have other settings, or none.
    share = _part(settings, "refinement").get("refined_share")
    return 1 - share if isinstance(share, float) and 0 <= share < 1 else 0.0


def _balancing(method: str, settings: Mapping[str, Any], drawn: float) -> str:
    """Return advice on the setting that balances the classes of a method's images; empty if there is none."""
    path = f"synthesis.methods.{method}"
    if settings.get("balanced") is False:
        return f"; set {path}.balanced: true to even out the targets"
    if drawn:
        return f"; {drawn:.0%} of them stay as drawn, not as targeted: raise {path}.refinement.refined_share"
    steps = next((name for name in ("refinement", "descent") if name in settings), None)
    return f"; raise {path}.{steps}.iterations" if steps else ""


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = content.get(name)
    return part if isinstance(part, Mapping) else {}


def _sharper(config: SynthesisConfig) -> str:
    if isinstance(config.method_config.steps, RefinementConfig):
        return f"Lower {config.steps_path}.temperature."
    return _more_varied(config)
