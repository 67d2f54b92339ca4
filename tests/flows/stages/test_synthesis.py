from pathlib import Path

import pytest

from dfkd_core.errors import ConfigError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_flows.settings.params import Params
from dfkd_flows.stages.synthesis import synthesize
from dfkd_tasks.caching.workspace import TeacherFiles

FILES = TeacherFiles("default")
CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.3,), layer="fc1")


@pytest.mark.parametrize(
    ("kind", "fault"), [("link", "is not empty and not a transfer set"), ("file", "is not a folder")]
)
def test_synthesize__leaves_what_is_in_place_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(FILES.network, build_classifier(CARD, seed=0))
    mine = Path("photos/1.jpg") if kind == "link" else FILES.transfer_set
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    if kind == "link":
        FILES.transfer_set.symlink_to(mine.parent.resolve())
    with pytest.raises(ConfigError, match=f"artifacts/teachers/default/transfer_set {fault}"):
        synthesize(Params())
    assert mine.read_text() == "mine"
