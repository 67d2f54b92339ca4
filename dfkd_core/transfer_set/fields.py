"""The fields of a manifest: which exist, which values they may have, and how they agree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dfkd_core.transfer_set.shards import SHARD_NAME, shard_name

__all__ = ["FORMAT_VERSION", "field_faults", "version_fault"]

FORMAT_VERSION = 2

_MOST_SHOWN = 60
# A mean of shares can exceed 1 by rounding.
_ROUNDING = 1e-9


def version_fault(content: Mapping[str, Any]) -> str | None:
    """Return a fault if the program does not read the format of a manifest."""
    if "format_version" not in content:
        return "it lacks format_version"
    version = content["format_version"]
    if _is_integer(version) and version == FORMAT_VERSION:
        return None
    fault = f"it has format version {_shown(version)}, this program reads {FORMAT_VERSION}"
    if not _is_integer(version):
        return fault
    return (
        f"{fault}; {'a newer dfkd wrote it, so update dfkd' if version > FORMAT_VERSION else 'an older dfkd wrote it'}"
    )


def field_faults(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of a manifest of this format: fields that are missing or unknown, values, contradictions."""
    found = [*_value_faults(content)]
    # Contradictions can be sought only between valid values.
    yield from found or _contradictions(content)


def _value_faults(content: Mapping[str, Any]) -> Iterator[str]:
    known = {"format_version", *_FIELDS}
    yield from (f"it lacks {name}" for name in sorted(known - content.keys()))
    yield from (f"it has the unknown field {name!r}" for name in sorted(content.keys() - known))
    for name, (is_valid, words) in _FIELDS.items():
        if name in content and not is_valid(content[name]):
            yield f"its {name} must be {words}, got {_shown(content[name])}"
    yield from _record_faults(content.get("shards"))


def _record_faults(records: Any) -> Iterator[str]:
    if not isinstance(records, list):
        return
    for position, record in enumerate(records):
        if not isinstance(record, dict) or record.keys() != _RECORD_FIELDS.keys():
            yield f"its shard {position} must have {', '.join(_RECORD_FIELDS)}, got {_shown(record)}"
            continue
        for name, (is_valid, words) in _RECORD_FIELDS.items():
            if not is_valid(record[name]):
                yield f"its shard {name} {_shown(record[name])} must be {words}"


def _contradictions(content: Mapping[str, Any]) -> Iterator[str]:
    records = content["shards"]
    stored = sum(record["num_images"] for record in records)
    if content["num_images"] != stored:
        yield f"its num_images is {content['num_images']}, but its shards hold {stored}"
    files = [record["file"] for record in records]
    if len(set(files)) < len(files):
        yield f"it lists {Counter(files).most_common(1)[0][0]} more than once"
    histogram, num_classes = content["class_histogram"], content["num_classes"]
    if len(histogram) != num_classes:
        yield f"its class_histogram has {len(histogram)} entries for {num_classes} classes"
    if sum(histogram) != content["num_images"]:
        yield f"its class_histogram counts {sum(histogram)} images of {content['num_images']}"


def _is_integer(value: Any) -> bool:
    # True and False are integers in Python.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 1


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1 + _ROUNDING


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


_Check = tuple[Callable[[Any], bool], str]
_FIELDS: dict[str, _Check] = {
    "method": (lambda value: isinstance(value, str) and value.isprintable() and bool(value), "a name"),
    "method_config": (lambda value: isinstance(value, dict), "an object"),
    "temperature": (lambda value: _is_number(value) and 1e-6 <= value <= 1e6, "a number from 1e-6 to 1e6"),
    "teacher_digest": (_is_text, "a text"),
    "statistics_digest": (lambda value: value is None or _is_text(value), "a text or null"),
    "code_version": (_is_text, "a text"),
    "seed": (_is_integer, "an integer"),
    "num_images": (_is_count, "an integer of at least 1"),
    "image_shape": (lambda value: _is_list(value, _is_count) and len(value) == 3, "three integers of at least 1"),
    "num_classes": (_is_count, "an integer of at least 1"),
    "class_histogram": (
        lambda value: _is_list(value, lambda item: _is_integer(item) and item >= 0),
        "a list of integers of at least 0",
    ),
    "mean_confidence": (_is_share, "a number from 0 to 1"),
    "target_agreement": (_is_share, "a number from 0 to 1"),
    "shards": (lambda value: isinstance(value, list) and bool(value), "a list of at least one shard"),
}
_RECORD_FIELDS: dict[str, _Check] = {
    "file": (
        lambda value: isinstance(value, str) and bool(SHARD_NAME.fullmatch(value)),
        f"like {shard_name(0)!r}, in its own folder",
    ),
    "sha256": (_is_digest, "64 hex digits"),
    "num_images": (_is_count, "an integer of at least 1"),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
