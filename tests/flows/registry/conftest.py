"""A project whose student was evaluated on the digits, and versions in MLflow that hold real programs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from dfkd_core.data.datasets import DataConfig
from dfkd_core.evaluation.comparison import EvaluationReport, evaluate
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.evaluation.predictions import write_predictions
from dfkd_core.evaluation.proxy import held_out_images
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.programs import export_program
from dfkd_core.models.storage import save_model
from dfkd_core.models.teacher import Teacher
from dfkd_flows.settings.parsing import flatten
from dfkd_tasks.caching.workspace import PREDICTIONS_FILE, StudentFiles, TeacherFiles
from dfkd_tasks.mlflow_store.aliases import Version, find_version
from dfkd_tasks.mlflow_store.publishing import open_store

NAME = "dfkd-student-digits"
NUM_HELD_OUT = 200
CARD = ModelCard(
    network="lenet5_half", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.3,), layer="fc1"
)
CARDS = {
    "champion": CARD,
    "challenger": CARD,
    "colour": replace(CARD, in_channels=3, mean=(0.3,) * 3, std=(0.3,) * 3),
    "seven": replace(CARD, num_classes=7),
}


def make_student(name: str) -> Classifier:
    return build_classifier(CARDS[name], seed=list(CARDS).index(name) + 1).eval()


@pytest.fixture
def student() -> Callable[[str], Classifier]:
    """Return a function that makes one of the students."""
    return make_student


@pytest.fixture
def report() -> Callable[..., EvaluationReport]:
    """Return a function that evaluates one of the students on the digits, or on another data set."""

    def make(name: str, dataset: str = "digits") -> EvaluationReport:
        data = load_evaluation_data(DataConfig(dataset=dataset), CARDS[name])
        teacher = Teacher(build_classifier(CARDS[name], seed=0))
        held_out = held_out_images(CARDS[name].image_shape, NUM_HELD_OUT)
        return evaluate(make_student(name), teacher, data=data, held_out=held_out)

    return make


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model folder, as MLflow lays it out, for each of the cards."""
    folder = tmp_path_factory.mktemp("programs")
    for name, card in CARDS.items():
        (folder / name / "data").mkdir(parents=True)
        export_program(make_student(name), card.image_shape, folder / name / "data/model.pt2")
        (folder / name / "MLmodel").write_text("flavors: {}\n")
    return folder


@pytest.fixture
def evaluated_on(
    project: Path, store: Path, report: Callable[..., EvaluationReport]
) -> Callable[..., EvaluationReport]:
    """Return a function that evaluates the challenger in a project with a store, whose parameters name the digits."""
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("dataset: fashion_mnist", "dataset: digits", 1))

    def make(dataset: str = "digits") -> EvaluationReport:
        save_model(TeacherFiles("default").network, build_classifier(CARD, seed=0).eval())
        found = report("challenger", dataset)
        write_predictions(StudentFiles("default").predictions, found.predictions)
        return found

    return make


@pytest.fixture
def register(programs: Path) -> Callable[..., Version]:
    """Return a function that registers one of the programs, with the run of its evaluation if it has one."""

    def make(name: str, found: EvaluationReport | None = None, **metrics: float) -> Version:
        experiment = open_store("dfkd")
        client = mlflow.MlflowClient()
        run_id = client.create_run(experiment).info.run_id if found or metrics else ""
        if found:
            write_predictions(Path("logged") / PREDICTIONS_FILE, found.predictions)
            client.log_artifact(run_id, f"logged/{PREDICTIONS_FILE}", "reports/student")
            metrics = {**flatten(found.to_metrics()), **metrics}
        for key, value in metrics.items():
            client.log_metric(run_id, key, value)
        if NAME not in [known.name for known in client.search_registered_models()]:
            client.create_registered_model(NAME)
        tags = {"dfkd.images_sha256": found.predictions.images_sha256} if found else {}
        place = Path(shutil.copytree(programs / name, Path("models", str(len(list(Path().glob("models/*")))))))
        made = client.create_model_version(NAME, source=str(place.resolve()), run_id=run_id or None, tags=tags)
        version = find_version(NAME, str(made.version))
        assert version is not None
        return version

    return make
