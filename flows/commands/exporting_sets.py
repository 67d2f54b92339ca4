"""`dfkd export-set`: a transfer set in the formats of other training programs."""

from __future__ import annotations

from pathlib import Path

from dfkd_core.common.digests import write_json
from dfkd_core.common.output_folders import check_output_folder, filling_folder, is_vacant
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.export.sets import SetFormat, check_set, set_formats, write_set
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.storage import read_card
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_flows.commands.cards import set_card
from dfkd_flows.session.anywhere import in_project
from dfkd_flows.session.display import Display, say
from dfkd_flows.settings.choosing import choose_teacher
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params
from dfkd_tasks.caching.workspace import TeacherFiles

__all__ = ["SET_FILE", "export_transfer_set"]

SET_FILE = "transfer_set.json"
"""File of an exported set with the inputs of its synthesis."""

_CARD = "README.md"
_LAYOUTS: dict[SetFormat, str] = {
    "webdataset": "`train-*.tar` hold for each image `KEY.png`, `KEY.cls` (the label) and `KEY.logits.npy`. "
    "`_info.json` lists the files, as timm reads it.",
    "imagefolder": "`train/CLASS/KEY.png` are the images, `train/metadata.jsonl` their labels and logits, and "
    "`class_map.txt` the folders in the order of the logits.",
    "parquet": "`train-*.parquet` have the columns `image`, `label` and `logits`.",
}
_FILES: dict[SetFormat, str] = {"webdataset": "train-*.tar", "imagefolder": "train/**", "parquet": "train-*.parquet"}
_READERS: dict[SetFormat, str] = {
    "webdataset": 'webdataset.WebDataset("{out}/{first}").decode("pil").to_tuple("png", "cls", "logits.npy")',
    "imagefolder": 'datasets.load_dataset("{out}")',
    "parquet": 'datasets.load_dataset("{out}")',
}


def export_transfer_set(folder: Path | None, here: Path, out: Path, *, format: str) -> None:
    """Write a transfer set in another format, with a card.

    Args:
        folder: Name of a teacher of the project, or a transfer set; None is that of the only teacher.
        here: Folder from which a path starts.
        out: A new or empty folder.
        format: One of `set_formats`.

    Raises:
        ConfigError: There is no such format, or `out` is not empty or cannot be written.
        DfkdError: As `TransferSet` and `write_set`.
    """
    known = next((name for name in set_formats() if name == format), None)
    if known is None:
        raise ConfigError(f"No format {format!r}. Formats: {', '.join(set_formats())}")
    check_output_folder(out)
    if not is_vacant(out):
        raise ConfigError(f"--out {out} is not empty. Give a new or an empty folder")
    _, name = choose_teacher(str(folder) if folder else None, load_params() if in_project() else Params())
    transfer_set = TransferSet(TeacherFiles(name).transfer_set if name else here / (folder or ""))
    check_set(transfer_set)
    teacher = _teacher_of(name, transfer_set)
    manifest = transfer_set.manifest
    with filling_folder(out, last=_CARD) as staged, Display("export") as display:
        names = teacher.class_names if teacher else ()
        write_set(transfer_set, staged, known, class_names=names, on_progress=display.show)
        write_json(staged / SET_FILE, manifest)
        text = set_card(manifest, teacher, layout=_LAYOUTS[known], data_files=_FILES[known])
        (staged / _CARD).write_text(text, encoding="utf-8")
    say(f"Made {out}: {manifest.num_images} images with the teacher's classes and logits")
    first = min(path.name for path in out.iterdir() if path.name.startswith("train"))
    say(f"Read it with: {_READERS[known].format(out=out, first=first)}")


def _teacher_of(name: str, transfer_set: TransferSet) -> ModelCard | None:
    """Return the card of the project's teacher of this name, if the set can be its."""
    if not name:
        return None
    try:
        card = read_card(TeacherFiles(name).network)
    except TeacherError:
        return None
    return card if card.num_classes == transfer_set.manifest.num_classes else None
