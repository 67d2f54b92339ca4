import pytest
import torch

from dfkd_core.errors import SynthesisError
from dfkd_core.synthesis.guards import balance_note, check_set, check_shard
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.transfer_set.shards import Shard

N, K = 40, 4
NOISE = {"methods": {"noise": {"std": 0.3}}}


def shard(*, images=None, logits=None, soft_targets=None):
    """A shard of different images, evenly spread over the classes, with what is given in its place."""
    generator = torch.Generator().manual_seed(0)
    if images is None:
        images = torch.randint(0, 256, (N, 1, 4, 4), generator=generator, dtype=torch.uint8)
    even = torch.nn.functional.one_hot(torch.arange(N) % K, K).float()
    logits = 2 * even if logits is None else logits
    soft_targets = even if soft_targets is None else soft_targets
    return Shard(images=images, teacher_logits=logits, soft_targets=soft_targets, image_index=torch.arange(N))


def check(made, method="soft_target"):
    check_shard(made, shard_index=3, config=SynthesisConfig(method=method))


def test_an_ordinary_shard_passes():
    check(shard())


@pytest.mark.parametrize(
    ("method", "advice"), [("dirichlet", r"dirichlet\.refinement\.iterations"), ("noise", r"noise\.std")]
)
def test_one_class__names_shard_number_and_setting(method, advice):
    logits = torch.zeros(N, K)
    logits[:, 2] = 1.0
    with pytest.raises(
        SynthesisError, match=rf"Shard 3: the teacher predicts class 2 of 4 for all 40 images.*{advice}"
    ):
        check(shard(logits=logits), method)


def test_duplicates__above_half_are_refused():
    images = shard().images.clone()
    images[:21] = images[0]
    check(shard(images=images))
    images[:22] = images[0]
    with pytest.raises(
        SynthesisError, match=r"21 of 40 images \(52\.5%\) are copies of others; at most 50% are allowed.*prior"
    ):
        check(shard(images=images))


def test_saturated_outputs__above_99_percent_are_refused():
    logits = 12 * shard().teacher_logits
    with pytest.raises(
        SynthesisError, match=r"certain \(0\.9999.*of 100\.0%.*at most 99% are allowed.*Lower .*iterations"
    ):
        check(shard(logits=logits))
    logits[0] = shard().teacher_logits[0]
    check(shard(logits=logits))


def test_outputs_that_say_nothing_are_refused():
    logits = 0.005 * shard().teacher_logits
    with pytest.raises(SynthesisError, match=r"teacher's outputs is 0\.25\d+, within 1% of 4 equal classes.*0\.2525"):
        check(shard(logits=logits))
    logits[5, 1] = 1.0
    check(shard(logits=logits))


def test_soft_targets_that_say_nothing_name_the_temperature():
    with pytest.raises(SynthesisError, match=r"soft targets is 0\.25.*soft_target\.refinement\.temperature"):
        check(shard(soft_targets=torch.full((N, K), 1 / K)))


def test_a_shard_with_few_images_per_class_is_not_judged():
    whole = shard(logits=torch.zeros(N, K))
    small = Shard(**{name: getattr(whole, name)[:39] for name in Shard.__slots__})
    check(small)


def test_a_large_shard_is_judged_whatever_the_number_of_classes():
    n, k = 1000, 500
    images = torch.arange(n, dtype=torch.int32).view(torch.uint8).view(n, 1, 2, 2)
    logits = torch.zeros(n, k)
    logits[:, 7] = 1
    made = Shard(images=images, teacher_logits=logits, soft_targets=logits, image_index=torch.arange(n))
    with pytest.raises(SynthesisError, match="class 7 of 500 for all 1000 images"):
        check(made)


def test_a_teacher_of_one_class_is_not_a_fault():
    images = shard().images
    made = shard(images=images, logits=torch.ones(N, 1), soft_targets=torch.ones(N, 1))
    check(made)
    check_set((N,), config=SynthesisConfig())


def test_a_set_of_one_class_is_refused_though_its_shards_were_too_small():
    with pytest.raises(SynthesisError, match="Transfer set: the teacher predicts class 1 of 4 for all 40 images"):
        check_set((0, 40, 0, 0), config=SynthesisConfig(images_per_shard=5))
    check_set((1, 39, 0, 0), config=SynthesisConfig())


def test_balance_note__names_classes_shares_and_the_even_share():
    assert balance_note((100, 120, 80, 100), method="noise", method_config=NOISE) is None
    note = balance_note((100, 121, 79, 100), method="noise", method_config=NOISE)
    assert note == "classes 1, 2 have 30.2 %, 19.8 % of the images against 25.0 %, by the teacher's answers"
    note = balance_note((4, 4, 4, 2), method="noise", method_config=NOISE)
    assert note.startswith("class 3 has 14.3 % of the images against 25.0 %")


@pytest.mark.parametrize(
    "config",
    [{}, {"methods": {}}, {"methods": []}, {"methods": {"noise": 3}}, {"methods": {"noise": {"refinement": "no"}}}],
)
def test_balance_note__of_a_set_with_other_settings_has_no_key_error(config):
    assert balance_note((4, 4, 4, 2), method="noise", method_config=config).startswith("class 3 has 14.3 %")


@pytest.mark.parametrize(("count", "is_noted"), [(10, False), (9, True)])
def test_balance_note__of_a_set_that_mostly_stays_as_drawn_names_only_classes_with_hardly_an_image(count, is_noted):
    drawn = {"methods": {"soft_target": {"balanced": True, "refinement": {"refined_share": 0.25}}}}
    note = balance_note((count, 250, 100, 400 - 350 - count), method="soft_target", method_config=drawn)
    assert (note is not None) == is_noted


def test_balance_note__shows_the_worst_of_many():
    note = balance_note((*[0] * 9, 91), method="noise", method_config=NOISE)
    assert note.startswith("classes 0, 1, 2, 3, 9 and 5 more have 0.0 %, 0.0 %, 0.0 %, 0.0 %, 100.0 % of the images")


@pytest.mark.parametrize(
    ("method", "settings", "advice"),
    [
        ("soft_target", {"balanced": False, "refinement": {}}, "set synthesis.methods.soft_target.balanced: true"),
        ("soft_target", {"balanced": True, "refinement": {"refined_share": 0.25}}, "75% of them stay as drawn"),
        ("soft_target", {"balanced": True, "refinement": {"refined_share": 1.0}}, "soft_target.refinement.iterations"),
        ("boundary", {"descent": {"iterations": 3}}, "raise synthesis.methods.boundary.descent.iterations"),
        ("noise", {"std": 0.3}, "answers"),
    ],
)
def test_balance_note__ends_with_the_setting_to_change_if_there_is_one(method, settings, advice):
    assert (
        advice
        in balance_note((99, 1), method=method, method_config={"methods": {method: settings}}).split(
            "by the teacher's "
        )[1]
    )
