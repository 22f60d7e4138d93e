"""One run on several processes (torchrun): who takes which part, and how the parts come together.

torchrun --nproc_per_node=2 train.py -model_name trfe ...
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from utils.device import CPU_NAMES
from utils.errors import UserError

T = TypeVar("T")

# How long a process waits for the others: validation on one may take longer than on another.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the `world` processes of a run, counted from 0; `local` counts those of this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def part(self, things: Sequence[T]) -> Sequence[T]:
        """Every world-th of `things`, this process's own."""
        return things[self.rank :: self.world]

    def joined(self, part: list[T]) -> list[T]:
        """The things again, in their order, from what each process made of its part."""
        if self.world == 1:
            return part
        parts: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, part)
        return [parts[number % self.world][number // self.world] for number in range(sum(map(len, parts)))]

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def same(self, value: T) -> T:
        """The value of the first process, for all."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gpu(self, asked: str) -> str:
        """What -gpu means for this process: the device of its own number, where there are several."""
        return asked if self.world == 1 or asked in CPU_NAMES else str(self.local)

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block, then the others: for what the first one makes and they use."""
        if self.world > 1 and not self.writes:
            dist.barrier()
        yield
        if self.world > 1 and self.writes:
            dist.barrier()

    def wrapped(self, net: nn.Module, device: torch.device) -> nn.Module:
        """`net` with its gradients averaged over the processes (DistributedDataParallel)."""
        if self.world == 1:
            return net
        return DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)


ALONE = Ranks()


@contextlib.contextmanager
def processes() -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone. All but the first have their output turned off.

    A collective operation that fails because another process ended becomes a UserError.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"]))
    # On GPUs NCCL moves the gradients, and Gloo what is on the CPU.
    dist.init_process_group(None if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    if ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    try:
        # Nothing is printed where there is no stdout.
        with contextlib.redirect_stdout(sys.stdout if ranks.writes else None):
            yield ranks
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise UserError(
                f"process {ranks.rank} lost another process of this run: look above and below for how that one ended."
            ) from error
        raise


def synchronise_batch_norm(net: nn.Module, device: torch.device) -> nn.Module:
    """`net` with its BatchNorms over the joined batch of all processes; parameters keep their names."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            # PyTorch's own works on GPUs only.
            module.__class__ = _SYNCHRONISED[type(module)]
    return net


class _Synchronised:
    """BatchNorm's forward pass in training with mean and variance over the images of all processes."""

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _Sum.apply(values.sum(dims)) / count
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class _SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    pass


class _SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    pass


_SYNCHRONISED = {nn.BatchNorm1d: _SynchronisedBatchNorm1d, nn.BatchNorm2d: _SynchronisedBatchNorm2d}


class _Sum(torch.autograd.Function):
    """The sum over the processes; what flows back is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
