"""A network made ready to answer: what training needs is folded away."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
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
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(block, name, fuse_conv_bn_eval(layer, norm))
            setattr(block, following, nn.Identity())
