import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from dfkd_core.data.datasets import DataConfig, data_fingerprint, load_dataset
from dfkd_core.errors import ConfigError, DataError
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.teachers.training import TeacherConfig, train_teacher

DIGITS = DataConfig(dataset="digits")
NAMES = tuple("0123456789")
CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.2,), std=(0.3,), layer="fc1")


@pytest.fixture(scope="module")
def teacher():
    trained = train_teacher(TeacherConfig(epochs=12), load_dataset(DIGITS, "train"), seed=0).classifier
    return Teacher(trained)


@pytest.fixture(scope="module")
def digits():
    data = load_dataset(DataConfig(dataset="digits", image_size=8), "test")
    return data.images[:, 0].numpy(), data.labels.numpy()


def accuracy(teacher, dataset, **settings):
    data = load_evaluation_data(DataConfig(dataset=dataset, **settings), teacher.card)
    report = evaluate(teacher.classifier, teacher, data=data, check_order=data.order == "as is")
    return report.teacher.scores.accuracy, data.order


def write_npz(path, digits, order=range(10), **more):
    images, labels = digits
    np.savez(path, images=images, labels=np.array(order)[labels], **more)
    return f"file:{path}"


def write_folder(path, digits, names=NAMES):
    for position, (pixels, label) in enumerate(zip(*digits, strict=True)):
        folder = path / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{position}.png")
    return f"folder:{path}"


def test_digits_from_any_source_give_the_accuracy_of_the_built_in_ones(teacher, digits, tmp_path):
    expected = evaluate(teacher.classifier, teacher, data=load_dataset(DIGITS, "test")).teacher.scores.accuracy
    assert expected > 0.8
    images, labels = digits
    save_file({"images": np.repeat(images[..., None], 3, 3), "labels": labels}, tmp_path / "colour.safetensors")
    np.savez(tmp_path / "floats.npz", images=images / 255, labels=labels.astype(np.uint8))
    sources = (
        "digits",
        write_npz(tmp_path / "digits.npz", digits),
        f"file:{tmp_path}/floats.npz",
        f"file:{tmp_path}/colour.safetensors",
        write_folder(tmp_path / "pictures", digits),
    )
    assert [accuracy(teacher, source) for source in sources] == [(expected, "as is")] * len(sources)


def test_the_shape_is_that_of_the_card_whatever_the_settings_say(digits, tmp_path):
    card = dataclasses.replace(CARD, in_channels=3, image_size=20, mean=(0.2,) * 3, std=(0.3,) * 3)
    for dataset in ("digits", write_npz(tmp_path / "x.npz", digits)):
        data = load_evaluation_data(DataConfig(dataset=dataset, image_size=64, channels=1), card)
        assert data is not None
        assert data.images.shape == (len(data), 3, 20, 20)
        assert data.images[torch.tensor([1, 5])].shape == (2, 3, 20, 20)


def test_classes_of_the_same_names_are_put_into_the_teachers_order(teacher, digits, tmp_path):
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    named = Teacher(build_classifier(dataclasses.replace(teacher.card, class_names=words), seed=0))
    named.classifier.network.load_state_dict(teacher.classifier.network.state_dict())
    dataset = write_folder(tmp_path, digits, words)
    assert accuracy(named, dataset) == (accuracy(teacher, "digits")[0], "by name")
    data = load_evaluation_data(DataConfig(dataset=dataset), named.card)
    assert data.class_names == words
    # The teacher's own names are digits, so that nothing but its answers can tell.
    with pytest.raises(DataError, match=r"data\.class_order: \[8,5,4,9,1,7,6,3,2,0\]"):
        accuracy(teacher, dataset)
    order = (8, 5, 4, 9, 1, 7, 6, 3, 2, 0)
    assert accuracy(teacher, dataset, class_order=order) == (accuracy(teacher, "digits")[0], "as set")


def test_a_wrong_order_that_was_set_is_the_users_own(teacher, digits, tmp_path):
    shifted = write_npz(tmp_path / "x.npz", digits, order=(1, 2, 3, 4, 5, 6, 7, 8, 9, 0))
    with pytest.raises(DataError, match="each label minus 1, modulo 10"):
        accuracy(teacher, shifted)
    wrong, how = accuracy(teacher, shifted, class_order=tuple(range(10)))
    assert (wrong < 0.2, how) == (True, "as set")


def test_labels_from_1_are_named_and_read_with_an_order(teacher, digits, tmp_path):
    dataset = write_npz(tmp_path / "x.npz", digits, order=range(1, 11))
    with pytest.raises(DataError, match=r"range from 1 to 10.*data\.class_order: \[-1,0,1,2,3,4,5,6,7,8,9\]"):
        accuracy(teacher, dataset)
    order = (-1, *range(10))
    assert accuracy(teacher, dataset, class_order=order) == (accuracy(teacher, "digits")[0], "as set")


def test_some_of_the_teachers_classes_are_enough_if_it_is_said_which(digits, tmp_path):
    images, labels = digits
    few = labels >= 8
    dataset = write_folder(tmp_path, (images[few], labels[few] - 8), names=("eight", "nine"))
    with pytest.raises(DataError, match="has 2 classes, but the teacher has 10"):
        load_evaluation_data(DataConfig(dataset=dataset), CARD)
    data = load_evaluation_data(DataConfig(dataset=dataset, class_order=(8, 9)), CARD)
    assert sorted(set(data.labels.tolist())) == [8, 9]
    assert data.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "eight", "nine")


def test_folders_named_like_some_of_the_teachers_classes_are_found_by_name(digits, tmp_path):
    named = dataclasses.replace(CARD, class_names=NAMES[::-1])
    images, labels = digits
    few = (labels == 3) | (labels == 8)
    dataset = write_folder(tmp_path, (images[few], labels[few]))
    data = load_evaluation_data(DataConfig(dataset=dataset), named)
    assert sorted(set(data.labels.tolist())) == [1, 6]
    assert (data.order, data.class_names) == ("by name", NAMES[::-1])
    assert data.notes == ("the images have 2 of the teacher's 10 classes, by their names",)


WORDS = ("airplane", "cat", "dog", "pickup truck", "zebra")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("airplane", "kat"), r"folders: 'kat' \(nearest: 'cat'\)\. Rename"),
        (("airplanes", "dogs"), r"'airplanes' \(nearest: 'airplane'\), 'dogs' \(nearest: 'dog'\)"),
        (("Airplane", "Cat", "Dog", "Pickup_Trucks", "Zebra"), r"'Pickup_Trucks' \(nearest: 'pickup truck'\)"),
        (("airplane", "cat", "dog", "pickup truck", "qqq"), r"folders: 'qqq'\. Rename"),
    ],
)
def test_folders_that_are_no_classes_of_the_teacher_are_refused_with_the_nearest_names(tmp_path, folders, message):
    card = dataclasses.replace(CARD, num_classes=5, class_names=WORDS)
    pixels = np.zeros((len(folders), 8, 8), dtype=np.uint8)
    dataset = write_folder(tmp_path, (pixels, np.arange(len(folders))), folders)
    with pytest.raises(DataError, match=f"{message}.* data.class_order"):
        load_evaluation_data(DataConfig(dataset=dataset), card)
    order = tuple(range(len(folders)))
    assert load_evaluation_data(DataConfig(dataset=dataset, class_order=order), card).order == "as set"


def test_folders_with_numbers_in_place_of_names_are_taken_in_order(tmp_path):
    card = dataclasses.replace(CARD, num_classes=5, class_names=WORDS)
    numbers = ("n001", "n002", "n003", "n004", "n005")
    dataset = write_folder(tmp_path, (np.zeros((5, 8, 8), dtype=np.uint8), np.arange(5)), numbers)
    data = load_evaluation_data(DataConfig(dataset=dataset), card)
    assert (data.order, data.labels.tolist()) == ("as is", [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1), "has 2 entries for 10 labels"),
        ((*range(9), 10), "has class 10, but the teacher has 10, 0 to 9"),
        ((*range(9), -1), "is -1 for labels that images have: 9"),
    ],
)
def test_orders_that_do_not_fit(digits, tmp_path, order, message):
    dataset = write_npz(tmp_path / "x.npz", digits)
    with pytest.raises(DataError, match=message):
        load_evaluation_data(DataConfig(dataset=dataset, class_order=order), CARD)


def test_more_classes_than_the_teacher_has(digits, tmp_path):
    dataset = write_npz(tmp_path / "x.npz", digits, order=range(2, 12))
    with pytest.raises(DataError, match="go up to 11, but the teacher has 10 classes, 0 to 9"):
        load_evaluation_data(DataConfig(dataset=dataset), CARD)


def test_none_is_no_data():
    assert load_evaluation_data(DataConfig(dataset="none"), CARD) is None


def test_the_fingerprint_is_of_the_users_files_alone(digits, tmp_path):
    dataset = write_npz(tmp_path / "x.npz", digits)
    before = data_fingerprint(DataConfig(dataset=dataset))
    write_npz(tmp_path / "x.npz", digits, order=range(1, 11))
    assert data_fingerprint(DataConfig(dataset=dataset)) not in ("", before)
    assert data_fingerprint(DIGITS) == data_fingerprint(DataConfig(dataset="file:nowhere.npz")) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "imagenet"},
            "dataset must be one of 'fashion_mnist', .*, torchvision:NAME, folder:PATH,",
        ),
        ({"dataset": "folder:"}, "got 'folder:'"),
        ({"dataset": "torchvision:a.b"}, "got 'torchvision:a.b'"),
        ({"dataset": "file:a.pkl"}, r"'file:a\.pkl' must end in \.npz or \.safetensors"),
        ({"class_order": (0, 0)}, r"must name each class once, .* got \[0, 0\]"),
        ({"class_order": (0, -2)}, "must name each class once"),
        ({"class_order": (-1, -1)}, "must name each class once"),
        ({"dataset": "none", "class_order": (1, 0)}, "class_order must be empty with dataset 'none'"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**settings)


def test_a_set_without_a_training_split_trains_nothing():
    with pytest.raises(ConfigError, match="folder:x has no training and test split"):
        load_dataset(DataConfig(dataset="folder:x"), "train")
