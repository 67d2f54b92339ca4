"""Images that a result depends on, as MLflow's data sets: name, digest, number and shape. No image is copied."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types.schema import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_DATASET_NAME_SIZE

__all__ = ["Images", "data_input"]

_DIGEST_LENGTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """A set of images that was trained or evaluated on."""

    label: str
    """Short name."""
    sha256: str
    """Digest of its content."""
    source: str
    """Where it is, as in params.yaml or relative to the project."""
    num_images: int
    """Images n."""
    image_shape: tuple[int, int, int]
    """Shape (c, h, w) of an image."""
    context: Literal["training", "evaluation"]

    @property
    def name(self) -> str:
        """Its name in MLflow."""
        return self.label[:MAX_DATASET_NAME_SIZE]

    @property
    def digest(self) -> str:
        """The beginning of the digest, as long as MLflow's own ones; the profile has the whole."""
        return self.sha256[:_DIGEST_LENGTH]


def data_input(images: Images) -> DatasetInput:
    """Return the images as an input of a run."""
    schema = TensorDatasetSchema(Schema([TensorSpec(np.dtype("uint8"), (-1, *images.image_shape))]))
    known = Dataset(
        name=images.name,
        digest=images.digest,
        source_type="dfkd",
        source=json.dumps({"uri": images.source}),
        schema=json.dumps(schema.to_dict()),
        profile=json.dumps({"num_images": images.num_images, "sha256": images.sha256}),
    )
    return DatasetInput(known, [InputTag(MLFLOW_DATASET_CONTEXT, images.context)])
