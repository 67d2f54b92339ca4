"""Synthesis of transfer images from a teacher alone."""

from dfkd_core.synthesis.base import SynthesizedBatch, Synthesizer
from dfkd_core.synthesis.boundary import BoundaryConfig
from dfkd_core.synthesis.dirichlet import DirichletConfig
from dfkd_core.synthesis.inversion import InversionConfig
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig, build_synthesizer, method_names
from dfkd_core.synthesis.noise import NoiseConfig
from dfkd_core.synthesis.noise_engineered import NoiseEngineeredConfig
from dfkd_core.synthesis.refinement import RefinementConfig, refine
from dfkd_core.synthesis.shards import num_shards, shard_indices, synthesize_shard
from dfkd_core.synthesis.soft_target import SoftTargetConfig

__all__ = [
    "BoundaryConfig",
    "DirichletConfig",
    "InversionConfig",
    "MethodSettings",
    "NoiseConfig",
    "NoiseEngineeredConfig",
    "RefinementConfig",
    "SoftTargetConfig",
    "SynthesisConfig",
    "SynthesizedBatch",
    "Synthesizer",
    "build_synthesizer",
    "method_names",
    "num_shards",
    "refine",
    "shard_indices",
    "synthesize_shard",
]
