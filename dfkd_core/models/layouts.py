"""Programs that take images with the channels last, as converters of Keras models write them.

n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ChannelsFirst", "Permutation", "channels_are_last", "first_permutation", "onnx_permutation"]

Permutation = tuple[int, ...] | None
"""The order in which a program puts the four dimensions of its input first; None if it does not."""

_CHANNELS = (1, 2, 3, 4)
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
# Operators that may normalise the images before their dimensions are permuted, in ONNX and in PyTorch.
_POINTWISE = (
    *("add", "cast", "castlike", "clip", "div", "identity", "mul", "neg", "sub"),
    *("_to_copy", "alias", "clamp", "clone", "contiguous", "detach", "rsub", "to"),
)
# Operators that only read the sizes.
_SIZES = ("dim", "len", "shape", "size", "sym_size")


def channels_are_last(shape: tuple[int | None, ...] | None, permutation: Permutation) -> bool:
    """Return whether a program takes images of (n, h, w, c) and not of (n, c, h, w).

    Args:
        shape: Shape of its input, None for open dimensions; None if it is unknown.
        permutation: What it does with the input first.
    """
    if permutation in (_TO_FIRST, _TO_LAST):
        return permutation == _TO_FIRST
    return shape is not None and shape[3] in _CHANNELS and shape[1] not in _CHANNELS and shape[1] == shape[2]


def onnx_permutation(graph: Any, name: str) -> Permutation:
    """Return the first permutation of the input of that name in an ONNX graph."""

    def user(name: str) -> tuple[str, Permutation, str] | None:
        users = [node for node in graph.node if name in node.input and node.op_type.lower() not in _SIZES]
        if len(users) != 1:
            return None
        order = next((tuple(found.ints) for found in users[0].attribute if found.name == "perm"), None)
        return users[0].op_type.lower(), order, users[0].output[0]

    return _followed(user, name, len(graph.node))


def first_permutation(program: Any) -> Permutation:
    """Return the first permutation of the images in an exported program or in TorchScript."""
    if isinstance(program, torch.export.ExportedProgram):
        names = program.graph_signature.user_inputs
        nodes = {node.name: node for node in program.graph.nodes}
        return _followed(_user_of_node, nodes[str(names[0])], len(nodes))
    # Its values are valid as long as the graph is referenced.
    graph = program.inlined_graph
    return _followed(_user_of_value, list(graph.inputs())[1], len(list(graph.nodes())))


def _user_of_node(node: Any) -> tuple[str, Permutation, Any] | None:
    users = [(user, _name(getattr(user.target, "_schema", None))) for user in node.users]
    users = [(user, name) for user, name in users if name not in _SIZES]
    return (users[0][1], _order(users[0][1], users[0][0].args[1:]), users[0][0]) if len(users) == 1 else None


def _user_of_value(value: Any) -> tuple[str, Permutation, Any] | None:
    users = [use.user for use in value.uses() if use.user.kind().removeprefix("aten::") not in _SIZES]
    if len(users) != 1 or users[0].outputsSize() != 1:
        return None
    name = users[0].kind().removeprefix("aten::")
    return name, _order(name, [_constant(item) for item in list(users[0].inputs())[1:]]), users[0].output()


def _constant(value: Any) -> Any:
    node = value.node()
    return [_constant(item) for item in node.inputs()] if node.kind() == "prim::ListConstruct" else value.toIValue()


def _name(schema: Any) -> str:
    return schema.name.removeprefix("aten::") if schema else ""


def _order(name: str, arguments: Any) -> Permutation:
    """Return the order that `permute` or `movedim` of four dimensions has by its arguments."""
    if name == "permute":
        return tuple(int(place) % 4 for place in arguments[0])
    if name == "movedim" and all(isinstance(place, int) for place in arguments):
        order = [0, 1, 2, 3]
        order.insert(arguments[1] % 4, order.pop(arguments[0] % 4))
        return tuple(order)
    return None


def _followed(user: Callable[[Any], tuple[str, Permutation, Any] | None], value: Any, longest: int) -> Permutation:
    """Follow a value through pointwise operators, and return the permutation after them."""
    for _ in range(longest):
        found = user(value)
        if found is None or found[1] is not None:
            return found and found[1]
        if found[0] not in _POINTWISE:
            return None
        value = found[2]
    return None


class ChannelsFirst(nn.Module):
    """A program that takes images [n, h, w, c], as a module that takes images [n, c, h, w]."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> Any:
        """Map images [n, c, h, w] to the program's answer."""
        return self.program(images.permute(0, 2, 3, 1))
