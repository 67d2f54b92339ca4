"""Check that two versions of the code produce the same bytes: shards of every method, students of both starts.

    git worktree add /tmp/before main~1
    python benchmarks/digests.py --against /tmp/before

Prints the digest of each case for both checkouts, and exits with 1 if any differs. Every case uses untrained networks
with fixed weights and takes seconds. Only public names of `dfkd_core` are used, so files may move between the versions.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
SHARD_FIELDS = ("images", "teacher_logits", "soft_targets", "image_index")
SEED = 3
# Names of the teacher networks, their channels, and the students.
GREY, COLOUR = ("lenet5", 1, "lenet5_half"), ("lenet5_bn", 3, "lenet5_half_bn")
RESNET = ("resnet18_eighth", 3, "resnet18@0.0625")
METHODS: dict[str, dict[str, Any]] = {
    "soft_target": {},
    "soft_target, procedural": {"refinement.prior": "procedural"},
    "soft_target, photos, all refined": {"refinement.prior": "photos", "refinement.refined_share": 1.0},
    "soft_target, fourier": {
        "refinement.prior": "fourier", "refinement.smoothing_px": 0.0, "refinement.toned_share": 0.0
    },
    "soft_target, pixels, as drawn": {"refinement.prior": "pixels", "refinement.refined_share": 0.0},
    "dirichlet": {"refinement.iterations": 8},
    "boundary": {"descent.iterations": 8},
    "noise": {},
    "inversion": {"descent.iterations": 8},
    "noise_engineered": {},
}  # fmt: skip
NEEDS_BATCH_NORM = ("inversion", "noise_engineered")
TRAININGS: dict[str, dict[str, Any]] = {
    "pruned": {"start": "pruned"},
    "random": {"start": "random"},
    "random, stored labels": {"start": "random", "feature_weight": 0.0, "augmentation.shift": 0.0},
    "random, MixUp": {"start": "random", "mixing": "mixup"},
    "random, disagreement": {"start": "random", "disagreement.share": 0.25},
}


def main() -> int:
    """Compare this checkout with another one, or print the digests of this one as JSON."""
    parser = argparse.ArgumentParser(description="Compare the digests of two versions.")
    parser.add_argument(
        "--against", type=Path, help="another checkout; without it, the digests of this one are printed"
    )
    arguments = parser.parse_args()
    if arguments.against is None:
        print(json.dumps(dict(digests()), indent=2))
        return 0
    before, now = (run(checkout) for checkout in (arguments.against, CHECKOUT))
    differing = 0
    for case in sorted(before.keys() | now.keys()):
        is_same = before.get(case) == now.get(case)
        differing += not is_same
        shown = " -> ".join(str(found.get(case))[:16] for found in (before, now))
        print(f"{'same   ' if is_same else 'DIFFERS'}  {case:<50} {shown}")
    print(f"{len(now)} cases, {differing} differ")
    return int(differing > 0)


def run(checkout: Path) -> dict[str, str]:
    """Return the digests of a checkout, computed in a separate process."""
    # Versions before 0.2 have their packages in the root.
    path = os.pathsep.join((str(checkout.resolve() / "src"), str(checkout.resolve())))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        cwd=checkout,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(made.stdout))


def digests() -> Iterator[tuple[str, str]]:
    """Yield each case and the SHA-256 of its result."""
    import torch

    torch.set_num_threads(1)
    import dfkd_core as core

    for network, channels, student in (GREY, COLOUR, RESNET):
        teacher = core.Teacher(trained(network, channels))
        sources = ("weights", "probes") if network == "lenet5" else ("weights", "batchnorm", "probes")
        for source in sources:
            config = core.StatisticsConfig(source=source, num_probes=200)
            found = core.estimate_statistics(teacher, config, seed=SEED)
            yield f"{network}, statistics from {source}", digest({"mean": found.mean, "factor": found.factor})
        statistics = core.estimate_statistics(teacher, core.StatisticsConfig(), seed=SEED)
        shard: Any = None
        for case, changes in METHODS.items():
            method = case.partition(",")[0]
            if method in NEEDS_BATCH_NORM and network == "lenet5":
                continue
            made = core.make_transfer_set(teacher, statistics, synthesis(method, changes), seed=SEED)
            shard = shard or made
            yield f"{network}, shard of {case}", digest({name: getattr(made, name) for name in SHARD_FIELDS})
        for case, changes in TRAININGS.items():
            training = changed(core.DistillationConfig(student=student, epochs=2, batch_size=64), changes)
            result = core.distill_images(teacher, shard.images, shard.teacher_logits, training, seed=SEED)
            yield f"{network}, student from {case}", digest(result.student.network.state_dict())


def trained(network: str, channels: int) -> Any:
    """Return a network with fixed weights and updated BatchNorm statistics."""
    import torch

    import dfkd_core as core

    card = core.ModelCard(
        network=network, in_channels=channels, image_size=32, num_classes=10, mean=(0.3, 0.4, 0.5)[:channels],
        std=(0.25, 0.2, 0.3)[:channels], layer="",
    )  # fmt: skip
    classifier = core.build_classifier(card, seed=SEED)
    images = torch.rand(64, channels, 32, 32, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        classifier.train()(images)
    # The outputs of untrained networks do not pass the checks of a shard.
    last = list(classifier.network.modules())[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.mul_(20)
        last.bias.sub_(classifier.eval()(images).mean(0))
    return classifier


def synthesis(method: str, changes: Mapping[str, Any]) -> Any:
    """Return a configuration of 120 images in two shards."""
    import dfkd_core as core

    config = core.SynthesisConfig(method=method, num_images=120, images_per_shard=80, batch_size=40)
    settings = changed(getattr(config.methods, method), changes)
    return dataclasses.replace(config, methods=dataclasses.replace(config.methods, **{method: settings}))


def changed(section: Any, changes: Mapping[str, Any]) -> Any:
    """Return a section with the values at dotted paths replaced, those of a nested section together."""
    nested: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    values |= {name: changed(getattr(section, name), inner) for name, inner in nested.items()}
    return dataclasses.replace(section, **values)


def digest(tensors: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names and bytes of the tensors."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
