"""The region-prior guides (RPG): how the gland's decoder guides the nodule's.

A guide acts on the nodule decoder's feature x at 1/8, 1/4 and 1/2 (levels 0, 1, 2). It takes from the gland
either P, the probability map of its head, or G, its decoder's feature at the same level; every guide answers
"x plus something", so that a guide that knows nothing leaves x alone.

Source: Gong et al., ISBI 2021, figure 3 (RPG-A, -B, -C) and Gong et al., Comput. Biol. Med. 2023 (TRFE+). Where the
authors' release differs from the figure, both readings are here under names of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import DECODER_FACTORS, GroupNorm, double_conv


class Guide(nn.Module):
    """Base of the guides; `width` is the network's, so that level k has width * (8, 4, 2)[k] channels.

    uses_logits: whether it needs the gland's map, for which its decoder has to climb to full scale.
    """

    uses_logits = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = [width * factor for factor in DECODER_FACTORS[:-1]]

    def prior(self, gland_features: Sequence[Tensor], gland_logits: Tensor | None) -> Sequence[Tensor]:
        """What the gland's decoder tells level 0, 1 and 2; by default its features G, each (B, c, H, W)."""
        return gland_features[: len(self.channels)]

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        """Guided feature of `level`, of x's shape."""
        raise NotImplementedError


class MaskGuide(Guide):
    """x + x * P: RPG-A, where release and figure agree (trfe)."""

    uses_logits = True

    def prior(self, gland_features: Sequence[Tensor], gland_logits: Tensor | None) -> list[Tensor]:
        """P = sigmoid(gland logits), (B, 1, H, W), at 1/8, 1/4 and 1/2."""
        halves = [torch.sigmoid(gland_logits)]
        for _ in self.channels:
            # Nearest-neighbour halving of an even size keeps every second pixel.
            halves.append(halves[-1][:, :, ::2, ::2])
        return halves[:0:-1]

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        return x + x * prior


class FeatureGuide(Guide):
    """x + x * G: RPG-B as released (trfe1)."""

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        return x + x * prior


class FusedGuide(Guide):
    """x + fuse(cat[x, G]), fuse = twice [1x1 conv -> BatchNorm -> ReLU]: RPG-C as released (trfe2)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.levels = nn.ModuleList(double_conv(2 * c, c, kernel=1) for c in self.channels)

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        return x + self.levels[level](torch.cat([x, prior], dim=1))


class GatedFeatureGuide(Guide):
    """x + x * sigmoid(conv1x1(G)): RPG-B as the paper's figure draws it (trfe-b)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.levels = nn.ModuleList(nn.Conv2d(c, c, 1) for c in self.channels)

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        return x + x * torch.sigmoid(self.levels[level](prior))


class JointFeatureGuide(Guide):
    """x + x * conv1x1(cat[x, G]): RPG-C as the paper's figure draws it (trfe-c)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.levels = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in self.channels)

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        return x + x * self.levels[level](torch.cat([x, prior], dim=1))


class GlandAttention(nn.Module):
    """a = a_w * a_h from z = cat[x, G]: attention along height and width, (B, 2c, H, W) -> (B, c, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, 2 * channels // 32)
        self.squeeze = nn.Sequential(
            nn.Conv2d(2 * channels, squeezed, 1), GroupNorm(8, squeezed), nn.LeakyReLU(0.2, inplace=True)
        )
        self.height = nn.Conv2d(squeezed, channels, 1)
        self.width = nn.Conv2d(squeezed, channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        rows = z.mean(dim=3, keepdim=True)
        columns = z.mean(dim=2, keepdim=True).transpose(2, 3)
        lengths = [z.shape[2], z.shape[3]]
        rows, columns = self.squeeze(torch.cat([rows, columns], dim=2)).split(lengths, dim=2)
        return torch.sigmoid(self.height(rows)) * torch.sigmoid(self.width(columns.transpose(2, 3)))


class AttentionGuide(Guide):
    """x + a, a = attention of cat[x, G]: TRFE+'s adaptive gland-region enhancement (trfeplus)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.levels = nn.ModuleList(GlandAttention(c) for c in self.channels)

    def forward(self, level: int, x: Tensor, prior: Tensor) -> Tensor:
        return x + self.levels[level](torch.cat([x, prior], dim=1))
