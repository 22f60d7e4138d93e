"""The U-Net family: one encoder, a decoder and a head per task, optionally a guide and a size head."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .blocks import STAGE_FACTORS, STRIDE, Decoder, Encoder, Norm, batch_norm, xavier
from .rpg import Guide


def linear_head(width: int) -> nn.Module:
    """1x1 convolution to one map of logits."""
    return nn.Conv2d(width, 1, 1)


def deep_head(width: int) -> nn.Module:
    """TRFE+'s nodule head: 1x1 conv to half the width, then two 3x3 convs, ReLU between them."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(width, half, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, 1, 3, padding=1),
    )


def size_head(width: int) -> nn.Sequential:
    """TRFE+'s size head on c5 after global pooling: (B, 16 width) -> (B, 1), before its sigmoid."""
    c = width * STAGE_FACTORS[-1]

    def stage(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Linear(c_in, c_out), nn.BatchNorm1d(c_out), nn.ReLU(inplace=True), nn.Dropout(0.5)]

    return nn.Sequential(*stage(c, c), *stage(c, c // 2), nn.Linear(c // 2, 1))


class MultiTaskUNet(nn.Module):
    """U-Net with one decoder per task; the gland's guides the nodule's where a guide is given.

    Called on (B, 3, H, W), ImageNet-normalised, H and W multiples of 16, it answers a dict of raw outputs:
    `nodule` and/or `gland`, logits (B, 1, H, W), as named by `tasks`; with a size head also `size` (B, 1), the
    predicted share of the image that the nodule covers. ValueError for other shapes. With fewer `tasks` set later,
    what only the others need is not computed.

    Source: Gong et al., ISBI 2021, figure 2; TRFE+: Gong et al., Comput. Biol. Med. 2023.
    """

    stride = STRIDE

    def __init__(
        self,
        width: int = 64,
        tasks: Sequence[str] = ("nodule",),
        guide: Callable[[int], Guide] | None = None,
        norm: Norm = batch_norm,
        nodule_head: Callable[[int], nn.Module] = linear_head,
        predicts_size: bool = False,
        init: Callable[[nn.Module], None] = xavier,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.encoder = Encoder(width, norm)
        self.decoders = nn.ModuleDict({task: Decoder(width, norm) for task in self.tasks})
        self.heads = nn.ModuleDict(
            {task: (nodule_head if task == "nodule" else linear_head)(width) for task in self.tasks}
        )
        self.guide = guide(width) if guide else None
        self.size_head = size_head(width) if predicts_size else None
        self.apply(init)

    def full_size_stages(self) -> list[nn.Module]:
        """The double convolutions at the image's own size, whose features take half the memory of a step."""
        return [self.encoder.stages[0], *(decoder.convs[-1] for decoder in self.decoders.values())]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_input(image, self.stride)
        features = self.encoder(image)
        outputs, guide = {}, None
        if "gland" in self.tasks or self.guide is not None:
            # The last step up, the dearest, is only for the gland's map.
            mapped = "gland" in self.tasks or self.guide.uses_logits
            gland = self.decoders["gland"](features, steps=4 if mapped else 3)
            logits = self.heads["gland"](gland[-1]) if mapped else None
            if "gland" in self.tasks:
                outputs["gland"] = logits
            guide = self._guided_by(gland, logits)
        if "nodule" in self.tasks:
            outputs["nodule"] = self.heads["nodule"](self.decoders["nodule"](features, guide)[-1])
        if self.size_head is not None:
            outputs["size"] = torch.sigmoid(self.size_head(features[-1].mean(dim=(2, 3))))
        return outputs

    def _guided_by(
        self, gland_features: Sequence[Tensor], gland_logits: Tensor | None
    ) -> Callable[[int, Tensor], Tensor] | None:
        """The guide with this image's prior filled in: (level, x) -> guided x."""
        if self.guide is None:
            return None
        prior = self.guide.prior(gland_features, gland_logits)
        return lambda level, x: self.guide(level, x, prior[level])


def check_input(image: Tensor, stride: int) -> None:
    """ValueError, naming a size that would work, unless `image` is (B, 3, H, W) with sides a multiple of `stride`."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"expected images (B, 3, H, W), got {tuple(image.shape)}")
    height, width = image.shape[2:]
    if height % stride or width % stride:
        good = [max(stride, round(side / stride) * stride) for side in (height, width)]
        raise ValueError(
            f"expected sides that are multiples of {stride}, got {height} x {width}; {good[0]} x {good[1]} would work"
        )


def _numbered(released: str, first: int, count: int, ours: str) -> list[tuple[str, str]]:
    """Rules for `count` layers that the release numbers from `first` and this project from 0."""
    return [(released.format(first + k), ours.format(k)) for k in range(count)]


# The release's parameter names, as (pattern at the start of a name, ours): conv1-5 are the encoder, up and conv 6-9 a
# decoder (with t the gland's), conv10 a head, conv6f-8f the guides. Numbers inside a double convolution agree.
RELEASED_NAMES = [
    *_numbered(r"conv{}\.conv\.", 1, 5, "encoder.stages.{}."),
    *_numbered(r"up{}\.", 6, 4, "decoders.nodule.ups.{}."),
    *_numbered(r"conv{}\.conv\.", 6, 4, "decoders.nodule.convs.{}."),
    *_numbered(r"up{}t\.", 6, 4, "decoders.gland.ups.{}."),
    *_numbered(r"conv{}t\.conv\.", 6, 4, "decoders.gland.convs.{}."),
    (r"conv10t\.", "heads.gland."),
    (r"conv10\.", "heads.nodule."),
    *_numbered(r"conv{}f\.conv\.", 6, 3, "guide.levels.{}."),
]
RELEASED_PLUS_NAMES = [
    (r"conv10\.", "heads.nodule.0."),
    (r"finalconv1\.", "heads.nodule.2."),
    (r"finalconv2\.", "heads.nodule.4."),
    (r"scale_pred\.fc\.", "size_head."),
    *_numbered(r"conv{}f\.conv1\.", 6, 3, "guide.levels.{}.squeeze.0."),
    *_numbered(r"conv{}f\.gn1\.", 6, 3, "guide.levels.{}.squeeze.1."),
    *_numbered(r"conv{}f\.conv_h\.", 6, 3, "guide.levels.{}.height."),
    *_numbered(r"conv{}f\.conv_w\.", 6, 3, "guide.levels.{}.width."),
    *RELEASED_NAMES,
]

# Layers that the release declares and no forward pass uses.
RELEASED_UNUSED = (r"up[6-9]_align\.", r"reduction6\.")
