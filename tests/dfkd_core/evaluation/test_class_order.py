import pytest
import torch

from dfkd_core.common.pixels import load_batch
from dfkd_core.data.datasets import DataConfig, load_dataset
from dfkd_core.errors import DataError
from dfkd_core.evaluation.class_order import check_class_order, find_class_order, order_by_name
from dfkd_core.models.classifier import ModelCard, build_classifier


def make_answers(accuracy, *, num_images=2000, num_classes=10, seed=0):
    """Return labels, and answers that are right with this probability and any other class otherwise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    wrong = (labels + torch.randint(1, num_classes, (num_images,), generator=generator)) % num_classes
    right = torch.rand(num_images, generator=generator) < accuracy
    return torch.where(right, labels, wrong), labels


def permutation(num_classes, seed=1):
    return torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))


def undo(order):
    """Return the teacher's class of each label where label `order[i]` stands for class i."""
    return tuple(order.argsort().tolist())


def test_order_by_name_needs_names_of_the_teacher():
    assert order_by_name(("b", "a", "c"), ("a", "b", "c")) == (1, 0, 2)
    assert order_by_name(("a", "b"), ("a", "b")) == (0, 1)
    for data, teacher in ((("a", "b"), ("a", "c")), ((), ("a", "b")), (("a", "b"), ()), (("a", "a"), ("a", "a"))):
        assert order_by_name(data, teacher) is None
    assert order_by_name(("c", "b"), ("a", "b", "c")) == (2, 1)
    assert order_by_name(("Bag", "T-shirt_top"), ("T-shirt/top", "Bag", "Coat")) == (1, 0)
    assert order_by_name(("A", "a"), ("a", "A")) == (1, 0)
    assert order_by_name(("A", "b"), ("a", "B", "b", "A")) == (3, 2)
    assert order_by_name(("A b", "c"), ("a-b", "a_b", "c")) is None
    assert order_by_name(("a", "b", "c"), ("a", "b")) is None


@pytest.mark.parametrize("accuracy", [0.6, 0.9, 1.0])
def test_a_permutation_is_found(accuracy):
    predicted, labels = make_answers(accuracy)
    moved = permutation(10)
    found = find_class_order(predicted, moved[labels], 10)
    assert found.order == undo(moved)
    assert found.accuracy_in_order == (predicted == labels).double().mean().item()
    assert found.accuracy == (predicted == moved[labels]).double().mean().item()
    assert found.num_unseen == 0


def test_two_exchanged_classes_are_found():
    predicted, labels = make_answers(0.9)
    exchange = torch.tensor([0, 1, 3, 2, *range(4, 10)])
    assert find_class_order(predicted, exchange[labels], 10).order == tuple(exchange.tolist())


@pytest.mark.parametrize("images_per_class", [1, 5])
def test_a_shift_of_1000_classes_is_found_in_few_images(images_per_class):
    predicted, labels = make_answers(0.7, num_images=1000 * images_per_class, num_classes=1000)
    found = find_class_order(predicted, (labels + 1) % 1000, 1000)
    assert found.order == (999, *range(999))


def test_a_permutation_of_1000_classes_is_found():
    predicted, labels = make_answers(0.7, num_images=10_000, num_classes=1000)
    moved = permutation(1000)
    found = find_class_order(predicted, moved[labels], 1000)
    assert sum(a == b for a, b in zip(found.order, undo(moved), strict=True)) > 990


def test_labels_from_1_with_the_last_class_missing_are_found():
    predicted, labels = make_answers(0.9)
    seen = labels < 9
    found = find_class_order(predicted[seen], labels[seen] + 1, 10)
    assert found.order == (9, *range(9))
    assert found.num_unseen == 1


@pytest.mark.parametrize("accuracy", [0.1, 0.2, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("num_images", [10, 100, 2000])
def test_right_labels_are_left_alone_however_weak_the_teacher(accuracy, num_images):
    for seed in range(20):
        predicted, labels = make_answers(accuracy, num_images=num_images, seed=seed)
        assert find_class_order(predicted, labels, 10) is None


def test_a_teacher_that_answers_one_class_is_left_alone():
    labels = torch.arange(1000) % 10
    assert find_class_order(torch.full_like(labels, 3), labels, 10) is None


def test_an_untrained_network_is_left_alone():
    data = load_dataset(DataConfig(dataset="digits"), "test")
    images = load_batch(data.images, torch.arange(len(data)))
    for seed in range(10):
        card = ModelCard(
            network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.17,), std=(0.3,), layer="fc1"
        )
        with torch.no_grad():
            predicted = build_classifier(card, seed=seed).eval()(images).argmax(1)
        assert find_class_order(predicted, data.labels, 10) is None


def test_too_few_images_tell_nothing():
    labels = torch.arange(10)
    assert find_class_order(labels, (labels + 1) % 10, 10) is None
    assert find_class_order(labels.repeat(2), (labels.repeat(2) + 1) % 10, 10) is not None


def test_the_message_has_both_accuracies_the_order_and_what_to_set():
    predicted, labels = make_answers(1.0, num_images=100)
    with pytest.raises(DataError) as caught:
        check_class_order(predicted, (labels + 1) % 10, 10)
    lines = str(caught.value).splitlines()
    assert "right on 0.00% of the 100 images" in lines[0]
    assert "on 100.00% with another order of the 10 classes: each label minus 1, modulo 10" in lines[0]
    assert lines[1] == "  data.class_order: [9,0,1,2,3,4,5,6,7,8]"
    assert lines[2] == "or keep the labels with data.class_order: [0,1,2,3,4,5,6,7,8,9]"
    exchange = torch.tensor([0, 1, 3, 2, *range(4, 10)])
    with pytest.raises(DataError, match="2 of them moved"):
        check_class_order(predicted, exchange[labels], 10)
    check_class_order(predicted, labels, 10)
