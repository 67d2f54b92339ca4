"""Damaged files: dfkd makes its own again with the same digests, and refuses the user's with the next step."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from fault_workspace import Outcome, Workspace, has_next_command

__all__ = ["CASES", "PARAMS", "Case", "Damage", "input_trials"]

Damage = Callable[[Path], None]

RUN = ("dfkd", "run")
TEACHER, STATISTICS = "artifacts/teachers/default/network", "artifacts/teachers/default/statistics"
TRANSFER_SET, STUDENT = "artifacts/teachers/default/transfer_set", "artifacts/students/default"
FIGURES, NOTES = "metrics/default.json", ".dfkd/students/default"
_SHARD = f"{TRANSFER_SET}/shard-00000.safetensors"


@dataclass(frozen=True)
class Case:
    """A damage of a finished workspace, the command that meets it, and whether the command must succeed."""

    name: str
    damage: Damage
    command: tuple[str, ...] = RUN
    mends: bool = True
    """Whether the command makes the same results again; otherwise it must refuse with the next step."""


def input_trials(workspace: Workspace, match: str = "", number: int | None = None) -> Iterator[Outcome]:
    """Yield the outcomes of the cases whose names match a regular expression, at most `number` of them."""
    workspace.restore("base")
    expected = workspace.digests()
    prepared = workspace.prepared()
    for case in [case for case in CASES if re.search(match, case.name)][:number]:
        yield _try(workspace if _SERVER in case.name else prepared, case, expected)


def _try(workspace: Workspace, case: Case, expected: dict[str, str]) -> Outcome:
    start = time.monotonic()
    workspace.restore("base")
    outcome = Outcome(case.name)
    case.damage(workspace.path)
    code, output = workspace.run(*case.command)
    if case.mends:
        outcome.same = code == 0 and workspace.digests() == expected
        outcome.duplicates = workspace.duplicates() if code == 0 else 0
        outcome.no_next_command = code != 0 and not has_next_command(output)
    else:
        outcome.same = code > 0
        outcome.no_next_command = not has_next_command(output)
    outcome.half_files = workspace.half_files()
    if not outcome.is_good:
        outcome.note = f"--- exit code {code}\n{output}"
    outcome.seconds = time.monotonic() - start
    return outcome


def _text(name: str, text: str | bytes) -> Damage:
    def damage(project: Path) -> None:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # DVC's links to its cache may be shared.
        path.unlink(missing_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def _each(pattern: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(project: Path) -> None:
        paths = [path for path in project.glob(pattern) if path.is_file()]
        assert paths, f"nothing matches {pattern}"
        for path in paths:
            changed = change(path.read_bytes())
            path.chmod(0o644)
            path.unlink()
            path.write_bytes(changed)

    return damage


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 1 for byte in data[middle : middle + 1]) + data[middle + 1 :]


def _empty(data: bytes) -> bytes:
    return b""


def _other_text(data: bytes) -> bytes:
    return b"<html>Not Found</html>\n"


def _conflict(data: bytes) -> bytes:
    return b"<<<<<<< HEAD\n" + data + b"=======\n>>>>>>> other\n"


def _no_keys(data: bytes) -> bytes:
    return b"{}"


def _a_list(data: bytes) -> bytes:
    return b"[]"


def _gone(pattern: str) -> Damage:
    def damage(project: Path) -> None:
        for path in project.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def _as_folder(name: str) -> Damage:
    def damage(project: Path) -> None:
        (project / name).unlink()
        (project / name).mkdir()

    return damage


def _all(*damages: Damage) -> Damage:
    def damage(project: Path) -> None:
        for one in damages:
            one(project)

    return damage


def _value(key: str, new: str) -> Damage:
    """Replace the first value of a key, and its line."""

    def damage(project: Path) -> None:
        path = project / "params.yaml"
        changed, count = re.subn(rf"^( *){key}:.*$", rf"\g<1>{new}", path.read_text(), count=1, flags=re.MULTILINE)
        assert count, key
        path.write_text(changed)

    return damage


def _json(name: str, key: str, value: object) -> Damage:
    def damage(project: Path) -> None:
        path = project / name
        content = json.loads(path.read_text())
        content[key] = value
        path.chmod(0o644)
        path.unlink()
        path.write_text(json.dumps(content))

    return damage


def _locked_by(pid: Callable[[], int], cmd: str) -> Damage:
    def damage(project: Path) -> None:
        entry = {"pid": pid(), "cmd": cmd}
        held = {"write": {str(project / STUDENT): entry}, "read": {str(project / TEACHER): [entry]}}
        (project / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
        (project / ".dvc/tmp/rwlock").write_text(json.dumps(held))

    return damage


def _uncached_student(project: Path) -> None:
    """Remove the student and its entry in DVC's cache, so that its stage asks the cache of its task."""
    outs = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["distill"]["outs"]
    [digest] = [out["md5"] for out in outs if out["path"] == STUDENT]
    (project / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    shutil.rmtree(project / STUDENT)


# Cases with this word need a server of Prefect in the project; all others share one.
_SERVER = "Prefect"

# Without them, every stage asks the cache of its tasks.
_no_dvc = _all(_gone("dvc.lock"), _gone(".dvc/cache"), _gone(".dvc-store"))

_MADE = {
    "the teacher's weights": f"{TEACHER}/model.safetensors",
    "the teacher's card": f"{TEACHER}/config.json",
    "the statistics": f"{STATISTICS}/*",
    "the manifest": f"{TRANSFER_SET}/manifest.json",
    "a shard": _SHARD,
    "the student's weights": f"{STUDENT}/model.safetensors",
    "the student's card": f"{STUDENT}/config.json",
    "the figures": FIGURES,
}
_PLAIN = {"cut": _cut, "empty": _empty, "other text": _other_text}
_DAMAGES = {**_PLAIN, "flipped bit": _flip}
_NOTES = (f"{NOTES}/run.json", f"{NOTES}/latency.json", ".dfkd/timings/*", ".dfkd/server.log")
# Not a shorter file: keys that are missing have their defaults.
PARAMS = {
    "binary": _text("params.yaml", bytes(range(256))),
    "Latin-1": _text("params.yaml", "seed: 0 # é\n".encode("latin-1")),
    "a list": _text("params.yaml", "- 1\n- 2\n"),
    "a folder": _as_folder("params.yaml"),
    "a tab": _text("params.yaml", "seed:\t0\n\tdata: 1\n"),
    "a Python tag": _text("params.yaml", "seed: !!python/object/apply:os.system ['true']\n"),
    "an unknown key": _value("seed", "seed: 0\nsede: 1"),
    "a text for a number": _value("seed", "seed: abc"),
    "a negative number": _value("seed", "seed: -1"),
    "not a number": _value("confidence", "confidence: .nan"),
    "a huge number": _value("num_images", "num_images: 1000000000000000000000"),
    "a key twice": _value("seed", "seed: 0\nseed: 1"),
    "a section with another name": _value("statistics", "statistic:"),
    "an unknown data set": _value("dataset", "dataset: digit"),
    "an unknown network": _value("network", "network: lenet55"),
    "an unknown method": _value("method", "method: soft_targets"),
    "an unknown device": _value("device", "device: gpu"),
    "an unknown student": _value("student", "student: lenet5_third"),
    "a teacher that is missing": _value("model", "model: nowhere.pt2"),
}


def _source(name: str, content: bytes, **more: str) -> Case:
    options = [word for key, value in more.items() for word in (f"--{key}", value)]
    return Case(f"teacher, {name}", _text("given.bin", content), ("dfkd", "run", *options), mends=False)


CASES = [
    # One at a time where the damage is hard to see, all of them where it is plain.
    *(Case(f"{what}, flipped bit", _each(pattern, _flip)) for what, pattern in _MADE.items()),
    *(Case(f"{what}, gone", _gone(pattern)) for what, pattern in _MADE.items()),
    *(
        Case(f"all results, {how}", _all(*(_each(pattern, change) for pattern in _MADE.values())))
        for how, change in _PLAIN.items()
    ),
    *(Case(f"published.json, {how}", _each(f"{NOTES}/published.json", change)) for how, change in _PLAIN.items()),
    *(
        Case(f"all notes, {how}", _all(*(_each(pattern, change) for pattern in _NOTES)))
        for how, change in _PLAIN.items()
    ),
    *(Case(f"params.yaml, {how}", damage, mends=False) for how, damage in PARAMS.items()),
    *(
        Case(f"dvc.lock, {how}", _each("dvc.lock", change))
        for how, change in {**_DAMAGES, "conflict": _conflict}.items()
    ),
    Case("dvc.lock, gone", _gone("dvc.lock")),
    Case("dvc.yaml, cut", _each("dvc.yaml", _cut), mends=False),
    Case("dvc.yaml, a list", _text("dvc.yaml", "- 1\n"), mends=False),
    Case("rwlock, cut", _text(".dvc/tmp/rwlock", '{"write": {"/x')),
    Case("rwlock, a dead process", _locked_by(lambda: 2**22 - 1, "dvc repro")),
    Case("rwlock, a later process with the number", _all(_gone(FIGURES), _locked_by(os.getpid, "dvc repro"))),
    Case("run.lock and holder, other text", _all(_text(".dfkd/run.lock", "x"), _text(".dfkd/run.holder.json", "[1]"))),
    Case("DVC's cache, a cut object", _all(_each(".dvc/cache/files/md5/*/*", _cut), _gone(FIGURES))),
    Case("DVC's cache, gone", _all(_gone(".dvc/cache"), _gone(STUDENT))),
    Case("DVC's cache of runs, cut", _all(_each(".dvc/cache/runs/*/*/*", _cut), _gone("dvc.lock"), _gone(STUDENT))),
    Case("DVC's states of files, other text", _each("../site/**/*.db", _other_text)),
    Case("DVC's cache and remote, gone", _all(_no_dvc, _gone(STUDENT))),
    Case("work files, a flipped bit", _all(_no_dvc, _each(".dfkd/work/**/*.*", _flip))),
    Case("work files, cut", _all(_uncached_student, _each(".dfkd/work/**/*.safetensors", _cut))),
    Case("work files, gone", _all(_uncached_student, _gone(".dfkd/work"))),
    Case("results of tasks, other text", _all(_uncached_student, _each(".dfkd/results/*", _other_text))),
    Case("results of tasks, empty", _all(_uncached_student, _each(".dfkd/results/*", _empty))),
    Case("results of tasks, gone", _all(_uncached_student, _gone(".dfkd/results"))),
    Case("Prefect's database, other text", _all(_gone(FIGURES), _text(".dfkd/prefect/prefect.db", "x" * 5000))),
    Case("mlflow.db, gone", _all(_gone("mlflow.db*"), _gone("mlartifacts"))),
    Case("mlflow.db, other text", _text("mlflow.db", "x" * 5000), mends=False),
    *(
        Case(f"verify, the manifest, {how}", _each(f"{TRANSFER_SET}/manifest.json", change), ("dfkd", "verify"), False)
        for how, change in _PLAIN.items()
    ),
    *(
        Case(f"verify, a shard, {how}", _each(_SHARD, change), ("dfkd", "verify"), False)
        for how, change in _DAMAGES.items()
    ),
    Case("verify, a path out of the folder", _json(f"{TRANSFER_SET}/manifest.json", "shards", [{"file": "../../x"}]),
         ("dfkd", "verify"), False),
    *(
        Case(f"show, the figures, {how}", _each(FIGURES, change), ("dfkd", "show"), False)
        for how, change in (("cut", _cut), ("empty", _empty), ("a list", _a_list), ("no keys", _no_keys))
    ),
    *(
        Case(f"export, the student's {what}, {how}", _each(f"{STUDENT}/{name}", change),
             ("dfkd", "export", "--out", "exported", "--format", "safetensors"), False)
        for what, name in (("weights", "model.safetensors"), ("card", "config.json"))
        for how, change in _PLAIN.items()
    ),
    _source("a page in place of weights", b"<html>", teacher="lenet5", weights="given.bin"),
    _source("empty weights", b"", teacher="lenet5", weights="given.bin"),
    _source("a page in place of a program", b"<html>", teacher="given.bin"),
]  # fmt: skip
