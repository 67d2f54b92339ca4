"""A transfer set in the formats of other training programs: images as PNG, the teacher's answers as soft labels.

    webdataset     train-000000.tar, ... with KEY.png, KEY.cls and KEY.logits.npy, and _info.json, which timm reads
    imagefolder    train/CLASS/KEY.png, train/metadata.jsonl, and class_map.txt with the names of the folders
    parquet        train-00000-of-00002.parquet, ... with image, label and logits, as the package datasets writes them

KEY is the position of an image in the set, label the class that the teacher answers, logits its whole answer.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dfkd_core.common.digests import write_json
from dfkd_core.errors import ConfigError, ExportError, TransferSetError
from dfkd_core.installing import install_command
from dfkd_core.progress import OnProgress, Progress, ignore
from dfkd_core.transfer_set.reader import TransferSet

__all__ = ["SetFormat", "check_set", "set_formats", "write_set"]

SetFormat = Literal["webdataset", "imagefolder", "parquet"]

_IN_A_FILE = 10_000
_AT_ONCE = 500
_MODES = {1: "L", 3: "RGB"}
_NOT_IN_FOLDERS = re.compile(r"[^\w.-]+")
_LONGEST_FOLDER = 40


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    png: bytes
    label: int
    logits: Tensor
    """float32 [k]."""


def set_formats() -> tuple[SetFormat, ...]:
    """Return the names of all formats."""
    return get_args(SetFormat)


def check_set(transfer_set: TransferSet) -> None:
    """Check that the images of a set can be pictures.

    Raises:
        TransferSetError: They have neither one channel nor three.
    """
    channels = transfer_set.manifest.image_shape[0]
    if channels not in _MODES:
        raise TransferSetError(
            f"The images of {transfer_set.folder} have {channels} channels, and a PNG file holds 1 or 3. Read the set "
            "in Python with: dfkd_core.TransferSet"
        )


def write_set(
    transfer_set: TransferSet,
    folder: Path,
    format: SetFormat,
    *,
    class_names: Sequence[str] = (),
    on_progress: OnProgress = ignore,
) -> None:
    """Write a transfer set into a folder; the same set gives the same bytes.

    Args:
        transfer_set: The set.
        folder: An empty folder.
        format: One of `set_formats`.
        class_names: Names of the classes in the order of the logits; numbers if there are none.
        on_progress: Called with the number of images that are written.

    Raises:
        ConfigError: There is no such format, or the names are not as many as classes.
        ExportError: A package is missing.
        TransferSetError: The images cannot be pictures, or a shard has a fault.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from dfkd_core import TransferSet, write_manifest, write_set, write_shard
        >>> from dfkd_core.transfer_set.shards import Shard
        >>> pixels, logits = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.eye(3)
        >>> shard = Shard(
        ...     images=pixels, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(3)
        ... )
        >>> inputs = {"method": "noise", "method_config": {}, "temperature": 1.0, "seed": 0, "code_version": ""}
        >>> digests = {"teacher_digest": "a1", "statistics_digest": None}
        >>> with TemporaryDirectory() as name:
        ...     records = [write_shard(Path(name) / "shard-00000.safetensors", shard)]
        ...     _ = write_manifest(Path(name), shards=records, **inputs, **digests)
        ...     (Path(name) / "exported").mkdir()
        ...     write_set(TransferSet(Path(name)), Path(name) / "exported", "webdataset")
        ...     sorted(path.name for path in (Path(name) / "exported").iterdir())
        ['_info.json', 'train-000000.tar']
    """
    if format not in set_formats():
        raise ConfigError(f"No format {format!r}. Formats: {', '.join(set_formats())}")
    num_classes = transfer_set.manifest.num_classes
    if class_names and len(class_names) != num_classes:
        raise ConfigError(f"{len(class_names)} class names for {num_classes} classes")
    check_set(transfer_set)
    names = tuple(class_names) or tuple(map(str, range(num_classes)))
    _WRITERS[format](folder, names, len(transfer_set), _samples(transfer_set, on_progress))


def _samples(transfer_set: TransferSet, on_progress: OnProgress) -> Iterator[_Sample]:
    total = len(transfer_set)
    mode = _MODES[transfer_set.manifest.image_shape[0]]
    for positions in torch.split(torch.arange(total), _AT_ONCE):
        images, logits = transfer_set.images[positions], transfer_set.teacher_logits[positions]
        for position, image, row in zip(positions.tolist(), images, logits):
            yield _Sample(f"{position:08d}", _png(image, mode), int(row.argmax()), row)
        on_progress(Progress(stage="export", done=int(positions[-1]) + 1, total=total, unit="images"))


def _png(image: Tensor, mode: str) -> bytes:
    """Return an image uint8 [c, h, w] as a PNG file."""
    pixels = image.numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[0] if mode == "L" else np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(stream, "PNG")
    return stream.getvalue()


def _write_webdataset(folder: Path, names: Sequence[str], total: int, samples: Iterator[_Sample]) -> None:
    files = {f"train-{number:06d}.tar": count for number, count in enumerate(_counts(total))}
    for file, count in files.items():
        with tarfile.open(folder / file, "w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in _first(samples, count):
                for suffix, content in _members(sample):
                    entry = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    split = {"name": "train", "num_samples": total, "filenames": [*files], "shard_lengths": [*files.values()]}
    write_json(folder / "_info.json", {"splits": {"train": split}, "class_names": names})


def _members(sample: _Sample) -> Iterator[tuple[str, bytes]]:
    logits = io.BytesIO()
    np.save(logits, sample.logits.numpy())
    yield "png", sample.png
    yield "cls", str(sample.label).encode()
    yield "logits.npy", logits.getvalue()


def _write_image_folder(folder: Path, names: Sequence[str], total: int, samples: Iterator[_Sample]) -> None:
    folders = _folders(names)
    for name in folders:
        (folder / "train" / name).mkdir(parents=True)
    with (folder / "train" / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for sample in samples:
            file = f"{folders[sample.label]}/{sample.key}.png"
            (folder / "train" / file).write_bytes(sample.png)
            entry = {"file_name": file, "label": sample.label, "logits": _shortest(sample.logits)}
            lines.write(json.dumps(entry) + "\n")
    (folder / "class_map.txt").write_text("".join(f"{name}\n" for name in folders), encoding="utf-8")
    for name in folders:
        # torchvision refuses a folder without pictures.
        if not any((folder / "train" / name).iterdir()):
            (folder / "train" / name).rmdir()


def _folders(names: Sequence[str]) -> list[str]:
    """Return the name of each class's folder; in the order of the alphabet they are in the order of the classes."""
    width = len(str(len(names) - 1))
    texts = (_NOT_IN_FOLDERS.sub("_", name)[:_LONGEST_FOLDER] for name in names)
    return [f"{label:0{width}d}_{text}" for label, text in enumerate(texts)]


def _shortest(logits: Tensor) -> list[float]:
    """Return float32 numbers with the fewest digits that are read back as the same numbers."""
    return [float(str(value)) for value in logits.numpy()]


def _write_parquet(folder: Path, names: Sequence[str], total: int, samples: Iterator[_Sample]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ExportError(f"The format parquet needs pyarrow. Install it with: {install_command('parquet')}") from None
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [*names]},
        "logits": {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "float32"}},
    }
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {"image": picture, "label": pa.int64(), "logits": pa.list_(pa.float32())},
        # The package datasets reads the kinds of its columns from here.
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    counts = _counts(total)
    for number, count in enumerate(counts):
        rows = [
            {"image": {"bytes": sample.png, "path": f"{sample.key}.png"}, "label": sample.label,
             "logits": sample.logits.numpy()}
            for sample in _first(samples, count)
        ]  # fmt: skip
        file = folder / f"train-{number:05d}-of-{len(counts):05d}.parquet"
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), file)


def _counts(total: int) -> list[int]:
    """Return the number of images in each file."""
    return [min(_IN_A_FILE, total - number * _IN_A_FILE) for number in range(math.ceil(total / _IN_A_FILE))]


def _first(samples: Iterator[_Sample], count: int) -> Iterator[_Sample]:
    return itertools.islice(samples, count)


_WRITERS: dict[str, Callable[[Path, Sequence[str], int, Iterator[_Sample]], None]] = {
    "webdataset": _write_webdataset,
    "imagefolder": _write_image_folder,
    "parquet": _write_parquet,
}
