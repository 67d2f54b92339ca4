"""`dfkd push` against a stand-in of Hugging Face's Hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from dfkd_core.export.run import export_model
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_flows.cli import app

pytest.importorskip("huggingface_hub")

TOKEN = "hf_secretsecretsecret"


@dataclass
class Hub:
    """A stand-in that keeps what it is given."""

    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their digest."""
    tokens: set[str] = field(default_factory=set)
    takes_large_files: bool = False
    fault: int = 0
    """Status with which a commit is refused."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.url}/me/small", "name": "me/small"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            kinds = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": self.mode(file["path"])} for file in asked
            ]
            return 200, {"files": kinds}
        if path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [
                {**entry, "actions": {"upload": {"href": f"{self.url}/store/{entry['oid']}"}}} for entry in objects
            ]
            return 200, {"transfer": "basic", "objects": actions}
        if "/commit/" in path:
            if self.fault:
                return self.fault, {"error": f"no right, {TOKEN}"}
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.stored[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/me/small/commit/1", "commitOid": "1" * 40, "success": True}
        return 200, {"id": "me/small", "private": True, "sha": "0" * 40, "siblings": [], "xetEnabled": False}

    def mode(self, path: str) -> str:
        return "lfs" if self.takes_large_files and path.endswith(".safetensors") else "regular"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, found = hub.answer(self.command, self.path.partition("?")[0], body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export with a card, and a file of the user's beside it."""
    card = ModelCard(
        network="lenet5_half", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.4,), layer="fc1"
    )
    images, texts = torch.zeros(4, 1, 32, 32, dtype=torch.uint8), {"README.md": "# A card\n"}
    out = tmp_path_factory.mktemp("made") / "out"
    export_model(build_classifier(card, seed=0), out, formats=("safetensors",), images=images, describe=lambda _: texts)
    (out / "private.txt").write_text("not for others")
    return out


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path) -> Path:
    """Change into a folder that is no project, with a copy of the export."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "out")
    return Path("out")


def call(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["push", *arguments], input=answer)


def uploaded(folder: Path) -> dict[str, bytes]:
    """Return the files of the export that belong on the Hub."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "private.txt"}


def test_an_export__is_shown_and_uploaded(exported: Path, hub: Hub) -> None:
    result = call("out", "--hub", "me/small", "--yes")
    assert result.exit_code == 0, result.output
    assert f"To {hub.url}, model me/small (private if it is new):" in result.output
    assert "model.safetensors" in result.output
    assert f"Uploaded: {hub.url}/me/small/commit/1" in result.output
    assert hub.files == uploaded(exported)
    assert [(made["name"], made["organization"], made["visibility"]) for made in hub.created] == [
        ("small", "me", "private")
    ]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in result.output


def test_public__is_asked_for(exported: Path, hub: Hub) -> None:
    result = call("out", "--hub", "me/small", "--yes", "--public")
    assert result.exit_code == 0, result.output
    assert "(public if it is new)" in result.output
    assert [made["visibility"] for made in hub.created] == ["public"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["out", "--hub", "me/small"], 2, "there is no terminal for the question. Upload with: --yes"),
        (["out", "--hub", "small", "--yes"], 2, "--hub takes OWNER/NAME, got 'small'. Try: --hub OWNER/out"),
        (["out", "--hub", "../small", "--yes"], 2, "--hub takes OWNER/NAME"),
        ([".", "--hub", "me/small", "--yes"], 2, "is no export. Make one with: dfkd export"),
        (["nowhere", "--hub", "me/small", "--yes"], 2, "is no export"),
    ],
)
def test_without_agreement_or_with_a_fault__nothing_leaves(
    exported: Path, hub: Hub, arguments: list[str], code: int, message: str
) -> None:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert (hub.created, hub.files, hub.tokens) == ([], {}, set())


def test_without_a_token__what_would_be_uploaded_is_shown(
    exported: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = call("out", "--hub", "me/small", "--yes")
    assert result.exit_code == 2
    assert "model.safetensors" in result.output
    assert "Nothing was uploaded: HF_TOKEN is not set" in result.output
    assert not hub.tokens


def test_a_changed_file__is_not_uploaded(exported: Path, hub: Hub) -> None:
    (exported / "config.json").write_text("{}")
    result = call("out", "--hub", "me/small", "--yes")
    assert result.exit_code == 2
    assert "config.json has changed since the export. Make it again with: dfkd export" in result.output
    assert not hub.tokens


@pytest.mark.parametrize("fault", ["missing", "link", "folder"])
def test_a_card_that_is_no_file_of_the_export__is_not_uploaded(exported: Path, hub: Hub, fault: str) -> None:
    (exported / "README.md").unlink()
    if fault == "link":
        (exported / "README.md").symlink_to("private.txt")
    elif fault == "folder":
        (exported / "README.md").mkdir()
    result = call("out", "--hub", "me/small", "--yes")
    assert result.exit_code == 2, result.output
    assert "README.md is no file of this folder. Make it again with: dfkd export --card" in result.output
    assert not hub.tokens


SET_FILES = ("README.md", "transfer_set.json", "class_map.txt", "train/metadata.jsonl", "train/0_a/00000000.png")


@pytest.fixture
def exported_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a folder with the files of an exported set."""
    monkeypatch.chdir(tmp_path)
    for name in SET_FILES:
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        Path("set", name).write_text(name)
    Path("secrets").mkdir()
    Path("secrets/00000001.png").write_text("not for others")
    return Path("set")


def test_of_a_set__only_its_own_files_are_uploaded(exported_set: Path, hub: Hub) -> None:
    (exported_set / "train-more").symlink_to(Path("secrets").absolute())
    (exported_set / "train/1_b").symlink_to(Path("secrets").absolute())
    for name in ("train.py", "train/0_a/notes.txt", "train/.env"):
        (exported_set / name).write_text("not for others")
    result = call("set", "--hub", "me/small", "--yes")
    assert result.exit_code == 0, result.output
    assert hub.files == {name: name.encode() for name in SET_FILES}


def test_a_link_in_place_of_a_file_of_a_set__is_not_uploaded(exported_set: Path, hub: Hub) -> None:
    (exported_set / "train/0_a/00000001.png").symlink_to(Path("secrets/00000001.png").absolute())
    result = call("set", "--hub", "me/small", "--yes")
    assert result.exit_code == 2, result.output
    assert "00000001.png is no file of this folder. Make it again with: dfkd export-set" in result.output
    assert not hub.tokens


def test_an_edited_card__is_uploaded(exported: Path, hub: Hub) -> None:
    (exported / "README.md").write_text("---\nlicense: mit\n---\n\nMine\n")
    result = call("out", "--hub", "me/small", "--yes")
    assert result.exit_code == 0, result.output
    assert hub.files["README.md"] == (exported / "README.md").read_bytes()


def test_a_refusal__is_one_message_without_the_token(exported: Path, hub: Hub) -> None:
    hub.fault = 403
    result = call("out", "--hub", "me/small", "--yes")
    assert result.exit_code == 1
    assert "dfkd: The upload to me/small failed: " in result.output
    assert "Nothing here has changed. Repeat the same command" in result.output
    assert TOKEN not in result.output


@pytest.mark.slow
def test_large_files__go_to_their_store(exported: Path, hub: Hub) -> None:
    hub.takes_large_files = True
    command = [sys.executable, "-m", "dfkd_flows", "push", "out", "--hub", "me/small", "--yes"]
    done = subprocess.run(
        command, env={**os.environ, "HF_HUB_DISABLE_XET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.files == uploaded(exported)
    assert list(hub.stored) == [hashlib.sha256(hub.files["model.safetensors"]).hexdigest()]
