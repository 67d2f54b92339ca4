"""The modelled distribution of a layer's features, in memory and on disk.

n samples, d units of the modelled layer, r rank of the covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfkd_core.common.archives import check_safetensors
from dfkd_core.common.digests import tensors_digest, write_atomically, write_json
from dfkd_core.common.json_files import parse_json
from dfkd_core.common.regular_files import unchanged
from dfkd_core.errors import TeacherError

__all__ = [
    "STATISTICS_FILE",
    "SUMMARY_FILE",
    "FeatureStatistics",
    "load_statistics",
    "save_statistics",
    "summarise_statistics",
]

STATISTICS_FILE = "statistics.safetensors"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class FeatureStatistics:
    """A normal distribution N(mean, factor factor^T) over the modelled layer.

    Example:
        >>> import torch
        >>> from dfkd_core import FeatureStatistics
        >>> statistics = FeatureStatistics(mean=torch.zeros(3), factor=torch.tensor([[1.0], [2.0], [0.0]]))
        >>> statistics.rank
        1
        >>> statistics.covariance.diagonal()
        tensor([1., 4., 0.])
        >>> statistics.sample(5, torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3])
    """

    mean: Tensor
    """float32 [d]."""
    factor: Tensor
    """float32 [d, r], any square root of the covariance."""

    def __post_init__(self) -> None:
        """Check shapes and values."""
        if self.factor.dim() != 2 or self.mean.shape != self.factor.shape[:1]:
            raise TeacherError(f"mean {tuple(self.mean.shape)} and factor {tuple(self.factor.shape)} do not match")
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.factor).all()):
            raise TeacherError("The feature statistics hold NaN or Inf. Check the teacher's weights")

    @property
    def rank(self) -> int:
        """Number r of independent normal numbers per sample."""
        return self.factor.shape[1]

    @property
    def covariance(self) -> Tensor:
        """Covariance [d, d]."""
        return self.factor @ self.factor.T

    @cached_property
    def digest(self) -> str:
        """SHA-256 over mean and factor."""
        return tensors_digest({"mean": self.mean, "factor": self.factor})

    def transform(self, standard_normal: Tensor) -> Tensor:
        """Map N(0, 1) numbers [n, r] to features [n, d]: h = mean + factor eps, exact at any rank."""
        return self.mean + standard_normal @ self.factor.T

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw features [n, d]."""
        return self.transform(torch.randn(n, self.rank, generator=generator))


def summarise_statistics(statistics: FeatureStatistics) -> dict[str, float | int | str]:
    """Return key figures: rank, spread and the share of variance in the largest directions."""
    values = torch.linalg.svdvals(statistics.factor.double()) ** 2
    total = values.sum().clamp_min(1e-30)
    return {
        "digest": statistics.digest,
        "num_features": len(statistics.mean),
        "rank": int((values > values.max() * 1e-10).sum()),
        "mean_norm": statistics.mean.norm().item(),
        "mean_std": statistics.covariance.diagonal().sqrt().mean().item(),
        "variance_in_first_10_directions": (values[:10].sum() / total).item(),
        "effective_rank": (total**2 / (values**2).sum().clamp_min(1e-30)).item(),
    }


def save_statistics(folder: Path, statistics: FeatureStatistics) -> None:
    """Write `statistics.safetensors` and a readable `summary.json` into `folder`."""
    tensors = {"mean": statistics.mean.contiguous(), "factor": statistics.factor.contiguous()}
    with write_atomically(folder / STATISTICS_FILE) as temporary:
        save_file(tensors, temporary)
    write_json(folder / SUMMARY_FILE, summarise_statistics(statistics))


def load_statistics(folder: Path) -> FeatureStatistics:
    """Read statistics that `save_statistics` wrote.

    Raises:
        TeacherError: The files are missing, corrupt or inconsistent.
    """
    path = folder / STATISTICS_FILE
    try:
        with unchanged(path) as stream:
            check_safetensors(stream)
            tensors = load_file(path)
        statistics = FeatureStatistics(tensors["mean"], tensors["factor"])
        recorded = parse_json((folder / SUMMARY_FILE).read_bytes())["digest"]
    except FileNotFoundError as error:
        raise TeacherError(f"No statistics in {folder}: {Path(error.filename or path).name} is missing") from None
    except TeacherError:
        raise
    except Exception as error:  # safetensors raises its own class for a corrupt file
        raise TeacherError(f"{path} does not hold feature statistics: {error}. Run: dfkd stage statistics") from error
    if recorded != statistics.digest:
        raise TeacherError(
            f"{path} does not match its summary (digest {statistics.digest[:12]}, the summary has {recorded[:12]}). "
            "Run: dfkd stage statistics"
        )
    return statistics
