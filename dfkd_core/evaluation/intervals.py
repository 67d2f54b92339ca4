"""How certain a comparison of two shares is: the lowest plausible difference of two students' accuracies.

All bounds are one-sided: the true difference is above the bound with the given confidence. z is the quantile of the
standard normal distribution at this confidence.
"""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["Z_95", "lowest_paired_gain", "lowest_unpaired_gain", "wilson_interval"]

_HALVINGS = 60


Z_95 = 1.96
"""Half width of a two-sided interval of 95 %, in standard deviations."""


def wilson_interval(share: float, num_images: int, z: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share: all p with |share - p| <= z * sqrt(p (1 - p) / n).

    Args:
        share: Observed share, in [0, 1].
        num_images: Images n, at least 1.
        z: Half width in standard deviations, for example `Z_95`.

    Example:
        >>> from dfkd_core.evaluation.intervals import wilson_interval
        >>> [round(bound, 4) for bound in wilson_interval(0.8, 10, 1.96)]
        [0.4902, 0.9433]
    """
    n = num_images
    centre = share + z * z / (2 * n)
    half_width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half_width) / (1 + z * z / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def lowest_unpaired_gain(new: float, old: float, num_images: int, confidence: float) -> float:
    """Return the lower bound of `new` - `old`, two shares of n images each, from their Wilson intervals.

        (new - old) - sqrt((new - l)² + (u - old)²)

    l is the lower end of Wilson's interval of `new`, u the upper end of that of `old` (Newcombe, Statistics in Medicine
    17, 1998, 873-890, method 10). The two are taken as independent, so the bound is cautious for the same images.

    Args:
        new: Share of correct images, in [0, 1].
        old: Likewise.
        num_images: Images n, at least 1.
        confidence: One-sided confidence, in (0, 1).
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = wilson_interval(new, num_images, z)[0], wilson_interval(old, num_images, z)[1]
    return (new - old) - math.hypot(new - low, high - old)


def lowest_paired_gain(only_new: int, only_old: int, num_images: int, confidence: float) -> float:
    """Return the lower bound of the difference of two shares that were measured on the same images.

    The bound is the difference d at which the score statistic

        ((b - c) / n - d) / sqrt((2 q + d - d²) / n)

    equals z (Tango, Statistics in Medicine 17, 1998, 891-908). Here b images are correct only in the new student, c
    only in the old one, and q is the most likely probability of c if the true difference is d, the larger root of

        2 n q² - ((b + c) (1 - d) - 2 d (n - b)) q - c d (1 - d) = 0.

    At d = 0 the statistic is McNemar's, (b - c) / sqrt(b + c).

    Args:
        only_new: Images b that only the new student gets right.
        only_old: Images c that only the old student gets right.
        num_images: All images n, at least b + c and 1.
        confidence: One-sided confidence, above 0.5 and below 1.

    Example:
        >>> from dfkd_core.evaluation.intervals import lowest_paired_gain
        >>> round(lowest_paired_gain(120, 100, 10_000, 0.95), 4)
        -0.0004
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = -1.0, (only_new - only_old) / num_images
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _score(only_new, only_old, num_images, middle) > z:
            low = middle
        else:
            high = middle
    return low


def _score(b: int, c: int, n: int, d: float) -> float:
    linear = (b + c) * (1 - d) - 2 * d * (n - b)
    q = (linear + math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d)))) / (4 * n)
    variance = (2 * q + d - d * d) / n
    return ((b - c) / n - d) / math.sqrt(variance) if variance > 0 else math.inf
