"""Where and in which precision to compute."""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from utils.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Compute:
    """A device and whether its matrix products are in bfloat16 (parameters and losses stay float32)."""

    device: torch.device
    bf16: bool

    def autocast(self) -> AbstractContextManager:
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"

    def __str__(self) -> str:
        return f"{self.name}, {'bfloat16 where it is safe' if self.bf16 else 'float32'}"


def choose_compute(gpu: str, precision: str = "auto") -> Compute:
    """The device that -gpu asks for (a CUDA index, or cpu) with the precision that -precision asks for.

    Without CUDA an index means the CPU, which is said in one line. `auto` takes bfloat16 where the hardware has it
    at speed: on CUDA from compute capability 8, on CPUs with AMX. UserError for an index no device has.
    """
    if gpu in ("cpu", "-1"):
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
    return Compute(device, precision == "bf16" or (precision == "auto" and _fast_bf16(device)))


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_amx_tile_supported()
