"""Networks as people write them, for `architectures.py`: each has a forward that a symbolic trace does not follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "ChannelNormed", "Checked", "Functional", "Looped", "Named", "PreActivated", "Shuffled", "Squeezed",
]  # fmt: skip


class Checked(nn.Module):
    """Checks the shape of its input, and flattens by `len`."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(2 * width * 16, 4 * width), nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"expected [n, 3, h, w], got {tuple(x.shape)}")
        assert x.shape[-1] == x.shape[-2], "images must be square"
        x = functional.max_pool2d(self.conv1(x).relu_(), 2)
        x = functional.adaptive_avg_pool2d(functional.relu(self.conv2(x)), 4)
        return self.fc2(torch.relu(self.fc1(x.reshape(len(x), -1))))


class Looped(nn.Module):
    """A list of residual blocks in a loop; some are skipped."""

    def __init__(self, width: int = 16, depth: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(depth)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for position, block in enumerate(self.blocks):
            if position % 3 == 2 and x.shape[-1] < 64:
                continue
            x = x + block(x)
        batch, channels = x.shape[:2]
        return self.head(x.view(batch, channels, -1).mean(-1))


class Named(nn.Module):
    """Branches in a dictionary, whose outputs are concatenated; one forward is called directly."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.branches = nn.ModuleDict(
            {"near": nn.Conv2d(width, width, 1), "far": nn.Conv2d(width, 2 * width, 5, padding=4, dilation=2)}
        )
        self.head = nn.Linear(3 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem.forward(x)
        parts = {name: functional.gelu(branch(x)) for name, branch in self.branches.items()}
        return self.head.forward(torch.cat(list(parts.values()), dim=1).amax((2, 3)))


class PreActivated(nn.Module):
    """Normalisation before each convolution; a shortcut that is padded with zero channels."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 2 * width, 3, 2, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * width), nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.norm, self.fc = nn.BatchNorm2d(2 * width), nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv2(functional.relu(self.bn2(self.conv1(functional.relu(self.bn1(x))))))
        missing = y.shape[1] - x.shape[1]
        x = y + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, missing))
        return self.fc(functional.adaptive_avg_pool2d(functional.relu(self.norm(x)), 1)[:, :, 0, 0])


class Squeezed(nn.Module):
    """Depthwise and grouped convolutions with squeeze and excitation."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, width, 3, 2, padding=1), nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.grouped, self.norm = nn.Conv2d(width, 2 * width, 3, padding=1, groups=4), nn.GroupNorm(4, 2 * width)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.deep(functional.silu(self.stem(x))))
        scale = torch.sigmoid(self.up(functional.relu(self.down(x.mean((2, 3))))))
        x = x * scale[:, :, None, None]
        return self.fc(functional.silu(self.norm(self.grouped(x))).flatten(2).mean(2))


class ChannelNormed(nn.Module):
    """Blocks of ConvNeXt: channels last, LayerNorm, a learned scale, and a norm over channels written by hand."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.deep, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        x = x + self.scale * self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        x = self.gain[:, None, None] * x + self.shift[:, None, None]
        return self.fc(x.mean([-2, -1]))


class Shuffled(nn.Module):
    """Halves of the channels take different ways and are shuffled, as in ShuffleNet."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * width, 3, 2, padding=1)
        self.units = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(2)
        )
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat([kept, unit(changed)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(torch.relu(x).mean((2, 3)))


class Functional(nn.Module):
    """Layers whose weights are used by functions, not by calls of the layers."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.conv.weight, stride=2, padding=1)
        x = functional.relu(self.norm(x)).mean((2, 3))
        x = torch.tanh(functional.linear(x, self.fc1.weight, self.fc1.bias))
        return functional.linear(x, self.fc2.weight, self.fc2.bias)
