from typing import Any

import pytest

from dfkd_core.errors import ConfigError
from dfkd_core.synthesis.methods import SynthesisConfig, method_names


def test_method_names_are_the_fields_of_the_table():
    assert method_names() == ("boundary", "dirichlet", "inversion", "noise", "noise_engineered", "soft_target")


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of 'boundary', 'dirichlet', .*'soft_target', got 'gan'"):
        SynthesisConfig(method="gan")


@pytest.mark.parametrize("name", ["num_images", "images_per_shard", "batch_size"])
def test_zero_images_are_refused(name):
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
        SynthesisConfig(**settings)
