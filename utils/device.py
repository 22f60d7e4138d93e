"""Where, in which precision and how compiled to compute."""

import contextlib
import ctypes
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model import ExportedNetwork
from model.inference import for_inference, pack
from utils.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")
CPU_NAMES = ("cpu", "-1")

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Compute:
    """A device, whether it computes in bfloat16 (in training, parameters and losses stay float32), and compiled."""

    device: torch.device
    bf16: bool = False
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of parameters and images at inference."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def autocast(self) -> AbstractContextManager:
        """For the forward pass of training."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def for_training(self, net: nn.Module) -> nn.Module:
        """The callable to train `net` through, which shares its parameters; `net` itself moves to the device."""
        net.to(self.device, memory_format=torch.channels_last)
        return torch.compile(net) if self.compile else net

    def for_inference(self, net: nn.Module, tasks: Sequence[str] | None = None) -> nn.Module:
        """A copy of `net` that is ready to answer here, `tasks` alone if given; an exported one is, as it is."""
        if next(net.parameters(), None) is None:
            return net.eval()
        ready = for_inference(net, self.dtype, tasks).to(self.device)
        if self.compile:
            # Frozen parameters are laid out once for the kernels that use them.
            return torch.compile(ready, options={"freezing": True})
        return pack(ready) if self.device.type == "cpu" else ready

    def images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the network for inference takes them."""
        return images.to(self.device, self.dtype, memory_format=torch.channels_last)

    def limited_to(self, net: nn.Module) -> "Compute":
        """The same as far as `net` can: an exported one runs on the CPU, and not every format in bfloat16."""
        if not isinstance(net, ExportedNetwork):
            return self
        return Compute(torch.device("cpu"), self.bf16 and net.bf16)

    @property
    def uncompiled(self) -> "Compute":
        """The same for a network that answers too few images to be compiled for them."""
        return replace(self, compile=False)

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    def __str__(self) -> str:
        precision = "bfloat16 where it is safe" if self.bf16 else "float32"
        return f"{self.name}, {precision}{', compiled' if self.compile else ''}"


def choose_compute(gpu: str, precision: str = "auto", compile: bool = False, reuse: bool = True) -> Compute:
    """The device that -gpu asks for (a CUDA index, or cpu) with the precision that -precision asks for.

    Without CUDA an index means the CPU, which is said in one line. `auto` takes bfloat16 where the hardware has it
    at speed: on CUDA from compute capability 8, on CPUs with AMX. fp32 is float32 throughout, without TF32. On the
    CPU memory is kept for the next tensor if `reuse`.
    UserError for an index no device has, and for `compile` on a CPU without a C++ compiler.
    """
    if gpu in CPU_NAMES:
        device = torch.device("cpu")
    elif not gpu.isdecimal():
        raise UserError(f"-gpu {gpu}: expected the index of a CUDA device, such as 0, or cpu.")
    elif not torch.cuda.is_available():
        print(f"-gpu {gpu}: no CUDA device is available here, running on the CPU.")
        device = torch.device("cpu")
    elif int(gpu) >= torch.cuda.device_count():
        raise UserError(f"-gpu {gpu}: this machine has {torch.cuda.device_count()} CUDA device(s), counted from 0.")
    else:
        device = torch.device("cuda", int(gpu))
    bf16 = precision == "bf16" or (precision == "auto" and _fast_bf16(device))
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bf16
    else:
        if reuse:
            reuse_memory()
        if compile and shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
            raise UserError(f"-compile needs a C++ compiler and there is no {compiler}: install one, or leave it out.")
    return Compute(device, bf16, compile)


def reuse_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    By itself it hands every block of some MB back to the system at once and gets it again page by page, zeroed, which
    takes half the time of a training step on the CPU (docs/performance.md). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_amx_tile_supported()
