"""Fits the names of weights to the names of a network's tensors.

Wrappers, training frameworks and parametrisations change the names; other parts of a training save tensors next to the
network's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["FittedWeights", "fit_weights", "rename", "renaming_for", "unused_names"]

# Wrappers put their own name into those of the tensors, also in the middle.
_WRAPPERS = (
    "module",
    "_module",
    "_orig_mod",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_forward_module",
)
# The new names of weight norm and spectral norm, and their old ones.
_PARAMETRISATIONS = (
    (re.compile(r"parametrizations\.(\w+)\.original0$"), r"\1_g"),
    (re.compile(r"parametrizations\.(\w+)\.original1$"), r"\1_v"),
    (re.compile(r"parametrizations\.(\w+)\.original$"), r"\1_orig"),
    (re.compile(r"parametrizations\.(\w+)\.0\._([uv])$"), r"\1_\2"),
)
# Counters of BatchNorm, of averaged models and of profilers, on which no output depends.
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# Parts of a training that are not the network, and heads that run in training only.
_BESIDE = re.compile(
    r"(?i)(criterion|loss|\w+_loss|loss_\w+|metrics?|\w+_metrics?|(train|val|valid|test)_\w+|accuracy|confmat|"
    r"projector|projection_head|queue|queue_ptr|aux\w*)(\.|$)"
)
_AVERAGED = re.compile(r"(?i)ema|average|momentum|teacher|target")
_MOST_RULES = 8


@dataclass(frozen=True, slots=True)
class FittedWeights:
    """Weights under the names of a network."""

    state: dict[str, Tensor]
    """Tensors by the network's names, and unexpected ones by their own."""
    left_out: tuple[str, ...]
    """Names of tensors that belong to other parts of the training, sorted."""


def rename(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors under new names; a tensor whose new name is empty is dropped.

    Args:
        state: Tensors by name.
        rules: Regular expressions and their replacements, applied to each name in this order.
    """
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        if name:
            found[name] = tensor
    return found


def fit_weights(network: nn.Module, state: Mapping[str, Tensor]) -> FittedWeights:
    """Return the tensors under the network's names.

    - Names that wrappers add are ignored: `module` of DataParallel, `_orig_mod` of torch.compile and others.
    - Of the prefixes that training frameworks add, such as `model.`, the one whose removal makes the most names fit is
      removed. Tensors without it are left out.
    - Counters, losses, metrics and heads for training are left out if the network does not contain them.
    - A tensor that the network has under two names may be missing under one of them.
    - Tensors named `0`, `1`, ... are assigned in the network's order if all their shapes fit.
    """
    expected = network.state_dict()
    if in_order := _assigned_in_order(expected, state):
        return FittedWeights(in_order, ())
    plain = _plain_names(expected)
    found = _plain_names(state)
    by_plain = {plain[name]: name for name in expected}
    best = max(
        _without_prefixes({found[name]: tensor for name, tensor in state.items()}),
        key=lambda names: len(by_plain.keys() & names.keys()),
    )
    fitting = {by_plain.get(name, name): t for name, t in best.items() if not _is_counter(name)}
    left_out = [name for name in fitting if name not in expected and _BESIDE.match(name)]
    kept = {name: t for name, t in expected.items() if _is_counter(name)}
    fitted = {name: t for name, t in fitting.items() if name not in left_out} | kept
    return FittedWeights(fitted | _twins(expected, fitted), tuple(sorted(left_out)))


def unused_names(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that `fit_weights` does not give to the network, without counters."""
    fitted = fit_weights(network, state)
    used = {id(tensor) for name, tensor in fitted.state.items() if name not in fitted.left_out}
    return [name for name, tensor in state.items() if id(tensor) not in used and not _is_counter(name)]


def renaming_for(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return rules for `rename` with which weights fit a network; empty if there are none that are obvious.

    Args:
        network: The network.
        state: Weights that do not fit it.
    """
    expected, fitted = network.state_dict(), fit_weights(network, state).state
    wanted = [name for name in expected if name not in fitted]
    extra = [name for name in fitted if name not in expected]
    proposals = [_first_names(expected, state)]
    if not wanted:
        proposals.append({f"^{name.partition('.')[0]}.*": "" for name in extra})
    if [expected[name].shape for name in wanted] == [fitted[name].shape for name in extra]:
        by_order = dict(_difference(old, new) for old, new in zip(extra, wanted))
        # A prefix that `fit_weights` removes is still there when the rules are applied.
        proposals += [by_order, {pattern.removeprefix("^"): new for pattern, new in by_order.items()}]
    for rules in proposals:
        if 0 < len(rules) <= _MOST_RULES:
            state_then = fit_weights(network, rename(state, rules)).state
            if {n: t.shape for n, t in state_then.items()} == {n: t.shape for n, t in expected.items()}:
                return rules
    return {}


def _first_names(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return rules that remove each first part of a name after which only names of the network follow."""
    parts: dict[str, list[str]] = {}
    for name in state:
        first, _, rest = name.partition(".")
        parts.setdefault(first, []).append(rest)
    return {f"^{first}.": "" for first, rests in parts.items() if set(rests) <= expected.keys()}


def _difference(old: str, new: str) -> tuple[str, str]:
    """Return the rule that turns the first part of one name into that of another."""
    olds, news = old.split("."), new.split(".")
    while len(olds) > 1 and len(news) > 1 and olds[-1] == news[-1]:
        olds.pop()
        news.pop()
    if old.endswith("." + new):
        return f"^{old.removesuffix(new)}", ""
    end = "." if len(olds) < len(old.split(".")) else ""
    return f"^{'.'.join(olds)}{end or '$'}", f"{'.'.join(news)}{end}"


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return each name without wrappers and parametrisations; unchanged if two names would become the same."""
    found = {name: _plain_name(name) for name in state}
    return found if len(set(found.values())) == len(found) else {name: name for name in state}


def _plain_name(name: str) -> str:
    for pattern, replacement in _PARAMETRISATIONS:
        name = pattern.sub(replacement, name)
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the state unchanged, and without each prefix found in its first names, or in pairs of them."""
    yield state
    for _ in range(3):
        firsts = dict.fromkeys(name.partition(".")[0] for name in state if "." in name)
        # Of two copies that fit, the averaged one is the last choice.
        inner = [
            {n.removeprefix(f"{first}."): t for n, t in state.items() if n.startswith(f"{first}.")}
            for first in sorted(firsts, key=lambda name: bool(_AVERAGED.search(name)))
        ]
        if not inner:
            return
        yield from inner
        state = max(inner, key=len)


def _assigned_in_order(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return numbered tensors under the network's names; empty if they are not numbered or do not fit."""
    if list(state) != [str(position) for position in range(len(state))] or state.keys() <= expected.keys():
        return {}
    for names in (list(expected), [name for name in expected if not _is_counter(name)]):
        if [expected[name].shape for name in names] == [tensor.shape for tensor in state.values()]:
            assigned = dict(zip(names, state.values()))
            return assigned | {name: t for name, t in expected.items() if _is_counter(name)}
    return {}


def _twins(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the missing tensors that the network also has under a name that is not missing."""
    owners = {_place(expected[name]): tensor for name, tensor in state.items() if name in expected}
    missing = {name: _place(tensor) for name, tensor in expected.items() if name not in state and tensor.numel()}
    return {name: owners[place] for name, place in missing.items() if place in owners}


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())
