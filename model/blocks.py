"""The parts every U-Net of the table is made of: double convolution, encoder, decoder, initialisation.

Source: TRFE-Net (Gong et al., ISBI 2021), section 2 and figure 2, as the authors' 2022 release builds it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the five encoder stages as multiples of the width; the decoder climbs back over the first four.
STAGE_FACTORS = (1, 2, 4, 8, 16)
DECODER_FACTORS = (8, 4, 2, 1)

# Four 2x2 poolings: both sides of an input must be a multiple of this.
STRIDE = 16

Norm = Callable[[int], nn.Module]


def batch_norm(channels: int) -> nn.Module:
    """BatchNorm with PyTorch's defaults (eps 1e-5, momentum 0.1)."""
    return nn.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with 32 groups, or one group a channel where a narrow network has fewer than 32."""
    return GroupNorm(min(32, channels), channels)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm whose gradient on the CPU is taken in float32.

    PyTorch's own gradient of channels-last bfloat16 features is five times slower there than that of float32 ones
    (docs/performance.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.requires_grad:
            return _GroupNormBF16.apply(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x)


class _GroupNormBF16(torch.autograd.Function):
    """native_group_norm of a bfloat16 x and float32 weight and bias, its gradient by way of float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), groups, eps)
        ctx.groups = groups
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dweight, dbias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        # Image by image: the float32 copies of a whole batch would be the largest tensors of the step.
        for i in range(len(x)):
            one = slice(i, i + 1)
            floats = [t[one].float() for t in (grad, x, mean, rstd)]
            dx[one], dw, db = torch.ops.aten.native_group_norm_backward(
                *floats, weight, *_sizes(x[one]), ctx.groups, [True, True, True]
            )
            dweight += dw
            dbias += db
        return dx, None, dweight, dbias, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Images, channels, pixels."""
    return x.shape[0], x.shape[1], x[0, 0].numel()


def double_conv(c_in: int, c_out: int, norm: Norm = batch_norm, kernel: int = 3) -> nn.Sequential:
    """Twice [convolution -> norm -> ReLU], (B, c_in, H, W) -> (B, c_out, H, W).

    The layers are numbered 0 to 5 as in the release, whose state dicts load by these numbers. The ReLU is not in
    place: on bfloat16 on the CPU that is twice as slow as writing a new tensor.
    """

    def conv(channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, c_out, kernel, padding=kernel // 2)

    return nn.Sequential(conv(c_in), norm(c_out), nn.ReLU(), conv(c_out), norm(c_out), nn.ReLU())


class UpConv(nn.ConvTranspose2d):
    """Transposed 2x2 convolution with stride 2, (B, c_in, H, W) -> (B, c_out, 2H, 2W).

    In training the bias is added apart: the gradient that oneDNN takes of a transposed convolution's bias is up to
    thirteen times as slow as that of its weights (docs/performance.md).
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y = F.conv_transpose2d(x, self.weight, stride=2)
        return y + self.bias.to(y.dtype)[:, None, None]


class Encoder(nn.Module):
    """Five double convolutions with 2x2 max-pooling between them."""

    def __init__(self, width: int, norm: Norm = batch_norm) -> None:
        super().__init__()
        widths = [width * factor for factor in STAGE_FACTORS]
        self.stages = nn.ModuleList(
            double_conv(c_in, c_out, norm) for c_in, c_out in zip([3, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features c1 ... c5 at 1, 1/2, 1/4, 1/8 and 1/16 of the input."""
        features = [self.stages[0](image)]
        for stage in self.stages[1:]:
            features.append(stage(self.pool(features[-1])))
        return features


class Decoder(nn.Module):
    """Four steps of [up-convolution, concatenation with the skip, double convolution, guide if there is one]."""

    def __init__(self, width: int, norm: Norm = batch_norm) -> None:
        super().__init__()
        widths = [width * factor for factor in DECODER_FACTORS]
        self.ups = nn.ModuleList(UpConv(2 * c, c) for c in widths)
        self.convs = nn.ModuleList(double_conv(2 * c, c, norm) for c in widths)

    def forward(
        self,
        features: Sequence[Tensor],
        guide: Callable[[int, Tensor], Tensor] | None = None,
        steps: int = len(DECODER_FACTORS),
    ) -> list[Tensor]:
        """Encoder features c1 ... c5 -> decoder features at 1/8, 1/4, 1/2 and 1, or the first `steps` of them.

        `guide(level, x)` answers the guided feature of level 0 (1/8), 1 (1/4) or 2 (1/2), which then goes up;
        at full scale there is no guide.
        """
        x, skips = features[-1], features[-2::-1]
        outputs = []
        for level, (up, conv, skip) in enumerate(list(zip(self.ups, self.convs, skips, strict=True))[:steps]):
            x = conv(torch.cat([up(x), skip], dim=1))
            if guide is not None and level < len(self.ups) - 1:
                x = guide(level, x)
            outputs.append(x)
        return outputs


def xavier(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for a Conv2d (not the transposed ones): mtnet, trfe, trfe1, trfe2."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def kaiming(module: nn.Module) -> None:
    """Kaiming-normal weights (fan-out) for a Conv2d, its bias left as PyTorch makes it: unet of the 2022 release."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def pytorch_default(module: nn.Module) -> None:
    """Leave PyTorch's initialisation: trfeplus."""
