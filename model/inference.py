"""A network made ready to answer: what training needs is folded away."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def for_inference(net: nn.Module, dtype: torch.dtype = torch.float32, tasks: Sequence[str] | None = None) -> nn.Module:
    """A copy of `net` for inference alone: its BatchNorms folded into the convolutions before them, channels last.

    With `dtype` torch.bfloat16 its parameters are rounded to that and it takes images of that type. Folding changes
    the answer by rounding only. With `tasks` it answers these of its tasks alone, and layers that they do not need
    are not run.
    """
    ready = copy.deepcopy(net).eval()
    if tasks is not None:
        ready.tasks = tuple(tasks)
    for block in ready.modules():
        if isinstance(block, nn.Sequential):
            _fold(block)
    return ready.to(dtype=dtype, memory_format=torch.channels_last)


def _fold(block: nn.Sequential) -> None:
    for (name, layer), (following, norm) in pairwise(list(block.named_children())):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            setattr(block, name, fuse_conv_bn_eval(layer, norm))
            setattr(block, following, nn.Identity())


def pack(net: nn.Module) -> nn.Module:
    """A network of for_inference with oneDNN's own convolutions: weights laid out once, the ReLU in the same pass.

    For the CPU, and final: the network can be called, but neither moved nor saved. It comes back as it is where
    oneDNN does not have its type of number. These are the operations that torch.compile puts there.
    """
    dtype = next(net.parameters()).dtype
    if not torch.backends.mkldnn.is_available() or (
        dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return net
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d):
                relu = isinstance(parent, nn.Sequential) and _take_relu(parent, name)
                setattr(parent, name, PackedConv(layer, relu))
    return net


def _take_relu(block: nn.Sequential, name: str) -> bool:
    """Remove the ReLU that follows layer `name`, perhaps after what folding left; whether there was one."""
    names = list(dict(block.named_children()))
    for following in names[names.index(name) + 1 :]:
        layer = getattr(block, following)
        if isinstance(layer, nn.ReLU):
            setattr(block, following, nn.Identity())
            return True
        if not isinstance(layer, nn.Identity):
            return False
    return False


class PackedConv(nn.Module):
    """A convolution, and a ReLU if asked, as one operation of oneDNN."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.sides = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]
        # The best layout hardly depends on the size of the images, but has to be told one.
        example = [1, conv.in_channels, 56, 56]
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.sides, example)
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.then = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.sides, self.then, [], "")
