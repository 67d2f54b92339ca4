"""How often permuted labels are detected, and correct labels flagged as permuted: the table in docs/data.md.

python benchmarks/class_order.py digits fashion_mnist
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from dfkd_core.common.pixels import load_batch
from dfkd_core.common.seeding import derive_generator
from dfkd_core.data.datasets import DataConfig, LabelledImages, load_dataset
from dfkd_core.evaluation.class_order import find_class_order
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.teachers.training import TeacherConfig, pixel_statistics, train_teacher

NUM_TEST_IMAGES = 2000
NUM_UNTRAINED = 60
NUM_TRAINING_IMAGES = (20, 50, 100, 200, 400, 800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+")
    for dataset in parser.parse_args().datasets:
        print(f"{dataset}:")
        train, test = (load_dataset(DataConfig(dataset=dataset), split) for split in ("train", "test"))
        for num_classes in (10, 5, 3, 2):
            print(
                f"  untrained, {num_classes} classes: {untrained(train, test, num_classes)} of {NUM_UNTRAINED} flagged"
            )
        for num_images in NUM_TRAINING_IMAGES:
            for seed in range(3):
                print(f"  trained on {num_images}: {trained(train, test, num_images, seed)}")


def untrained(train: LabelledImages, test: LabelledImages, num_classes: int) -> int:
    """Count the untrained networks for which correct labels are flagged as permuted."""
    mean, std = pixel_statistics(train.images)
    kept = (test.labels < num_classes).nonzero()[:NUM_TEST_IMAGES, 0]
    card = ModelCard(
        network="lenet5", in_channels=test.images.shape[1], image_size=test.images.shape[-1], num_classes=num_classes,
        mean=mean, std=std, layer="fc1",
    )  # fmt: skip
    flagged = 0
    for seed in range(NUM_UNTRAINED):
        predicted = answers(build_classifier(card, seed=seed), test.images[kept])
        flagged += find_class_order(predicted, test.labels[kept], num_classes) is not None
    return flagged


def trained(train: LabelledImages, test: LabelledImages, num_images: int, seed: int) -> str:
    """Return the result for a weak teacher with correct labels and with permuted ones."""
    generator = derive_generator(seed, "class order", num_images)
    few = torch.randperm(len(train), generator=generator)[:num_images]
    data = LabelledImages(train.images[few], train.labels[few], train.class_names)
    classifier = train_teacher(TeacherConfig(epochs=3, batch_size=32), data, seed=seed).classifier
    predicted, labels = answers(classifier, test.images[:NUM_TEST_IMAGES]), test.labels[:NUM_TEST_IMAGES]
    num_classes = len(test.class_names)
    moved = torch.randperm(num_classes, generator=generator)
    right, permuted = (find_class_order(predicted, given, num_classes) for given in (labels, moved[labels]))
    accuracy = (predicted == labels).double().mean().item()
    return f"{accuracy:.1%} right, flagged {right is not None}, with permuted labels {permuted is not None}"


@torch.inference_mode()
def answers(classifier: Classifier, images: Tensor) -> Tensor:
    parts = torch.split(torch.arange(len(images)), 500)
    return torch.cat([classifier.eval()(load_batch(images, part)).argmax(1) for part in parts])


if __name__ == "__main__":
    main()
