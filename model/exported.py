"""Networks that export.py wrote as ONNX or OpenVINO, called like those of PyTorch."""

import json
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError

from .formats import FORMATS, Format, Run

FORMAT = "trfe-net export 1"

# One for all networks, so that they can be copied; it is held only while one of them starts.
_starting = threading.Lock()


def format_of(path: Path) -> Format | None:
    """The format of an exported file, None for a file with another suffix."""
    return next((entry for entry in FORMATS.values() if path.suffix == entry.suffixes[0]), None)


def read_exported(path: Path) -> dict:
    """What an exported file says of itself, with its `path`; nothing in it is run.

    That is `model` (name, width, tasks), `input_size`, `mean`, `std`, `int8`, `epoch`, `args` (of the training),
    `version` (of this project) and `sha256` (of the checkpoint). UserError where export.py did not write the file.
    """
    missing = [file for suffix in format_of(path).suffixes if not (file := path.with_suffix(suffix)).is_file()]
    if missing:
        raise UserError(f"{path} cannot be loaded: there is no {missing[0]}, which belongs to it. Export it again.")
    try:
        metadata = format_of(path).read_metadata(path)
    except UserError:
        raise
    except Exception as error:  # each package has errors of its own for a damaged file
        raise UserError(f"{path} is damaged or no exported network ({_reason(error)}). Export it again.") from error
    content = _parse(metadata)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by export.py of this version: its metadata lacks the mark {FORMAT!r}. "
            f"Export the checkpoint with: python export.py -load_path <checkpoint.pth>"
        )
    return {**content, "path": path}


def _parse(metadata: str | None) -> dict:
    """The metadata as a dict, an empty one where it is nothing of the kind."""
    try:
        content = json.loads(metadata or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _reason(error: Exception) -> str:
    """The last line of an error, where OpenVINO, after lines about its source, says what is wrong."""
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)


class ExportedNetwork(nn.Module):
    """A network that onnxruntime or OpenVINO runs on the CPU.

    Called on images (B, 3, S, S), ImageNet-normalised, S the size it was exported for, it answers what the network
    answered in PyTorch, float32 on the CPU. Given bfloat16 images it computes in bfloat16 where its format has that
    (`bf16`). Several threads may call it at once; each call computes with as many threads as PyTorch has at the
    first one. UserError for other shapes and for a file that cannot be run.
    """

    def __init__(self, checkpoint: dict) -> None:
        """`checkpoint`: what read_exported answered."""
        super().__init__()
        self.path, self.input_size = checkpoint["path"], checkpoint["input_size"]
        self.tasks = tuple(checkpoint["model"]["tasks"])
        self.bf16 = format_of(self.path).bf16
        self._runs: dict[tuple[bool, int | None], Run] = {}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        expected = (3, self.input_size, self.input_size)
        if image.shape[1:] != expected:
            raise UserError(f"{self.path} takes images {('B', *expected)}, got {tuple(image.shape)}.")
        batch = len(image) if format_of(self.path).fixes_batch else None
        run = self._run(self.bf16 and image.dtype == torch.bfloat16, batch)
        outputs = run(image.detach().float().cpu().contiguous().numpy())
        return {name: torch.from_numpy(values) for name, values in outputs.items()}

    def _run(self, bf16: bool, batch: int | None) -> Run:
        """What runs the network in this precision, on this number of images, started at the first call."""
        with _starting:
            if (bf16, batch) not in self._runs:
                self._runs[bf16, batch] = self._start(bf16, batch)
            return self._runs[bf16, batch]

    def _start(self, bf16: bool, batch: int | None) -> Run:
        try:
            return format_of(self.path).start(self.path, bf16, batch)
        except UserError:
            raise
        except Exception as error:  # RuntimeError from OpenVINO, classes of its own from onnxruntime
            raise UserError(f"{self.path} cannot be run ({_reason(error)}). Export it again.") from error
