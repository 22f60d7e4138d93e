"""Checkpoint files: written whole or not at all, read without running anything they contain."""

import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError

from .exported import format_of, read_exported

FORMAT = "trfe-net checkpoint 1"


@dataclass(frozen=True)
class ReleasedNames:
    """How the parameter names of a released state dict turn into this project's.

    rules: (regular expression for the start of a released name, what replaces it), the first that matches counts;
    unused: expressions for layers that the release declares and never uses.
    """

    rules: Sequence[tuple[str, str]]
    unused: Sequence[str] = ()

    def convert(self, state: dict[str, Tensor], path: Path | str) -> tuple[dict[str, Tensor], list[str]]:
        """(our state dict, the layers left out). UserError naming every parameter that no rule knows."""
        converted, unused, unknown = {}, [], []
        for released, value in state.items():
            name = released.removeprefix("module.")
            ours = next((new + name[m.end() :] for old, new in self.rules if (m := re.match(old, name))), None)
            if ours is not None:
                converted[ours] = value
            elif any(re.match(pattern, name) for pattern in self.unused):
                unused.append(name.rpartition(".")[0])
            else:
                unknown.append(released)
        if unknown:
            raise UserError(f"{path}: no layer of this network is called {_few(unknown)}. Is -model_name right?")
        return converted, list(dict.fromkeys(unused))


def save_checkpoint(path: Path, content: dict) -> None:
    """Write `content` (plain values, tensors, dicts and lists of them) to `path`, replacing it in one step.

    A crash or a full disk at any moment leaves the previous file untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
        raise UserError(f"cannot write {path}: {error}. What was there before is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint on the CPU, with its `path`; no code inside it is run (weights_only).

    One of this project has `model` (name, width, tasks), `state_dict`, `args` and, unless it is a best one, the
    training state; a released state dict comes as `state_dict` alone. An exported network (.onnx, .xml) has no
    `state_dict`: see read_exported. UserError where it is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}. Train one with train.py, or correct the path.")
    if format_of(path) is not None:
        return read_exported(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds something other than plain tensors and values, or is no checkpoint at all; "
            f"it was not loaded, since that could run code of its author's. Save its state_dict() alone."
        ) from error
    except Exception as error:  # a damaged file makes the unpickler fail in many ways, IndexError among them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged or no checkpoint: {reason}") from error
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return {**content, "path": path}
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {"state_dict": content, "path": path}
    raise UserError(f"{path} is neither a checkpoint of this project nor a released state dict.")


def read_trainable(path: str | Path) -> dict:
    """read_checkpoint for what goes on from the weights. UserError for an exported network, which has none to offer."""
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is an exported network, which can be run but neither trained nor exported again. "
            f"Give the checkpoint (.pth) that it was made from."
        )
    return checkpoint


def load_strictly(net: nn.Module, state: dict[str, Tensor], path: Path | str) -> None:
    """Load `state` into `net`. UserError naming what is missing, unknown or of another shape."""
    expected = net.state_dict()
    missing, unknown = (
        [name for name in expected if name not in state],
        [name for name in state if name not in expected],
    )
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{text} {_few(names)}"
        for text, names in (("lacks", missing), ("has the unknown", unknown), ("has", other))
        if names
    ]
    if problems:
        raise UserError(f"{path} does not fit the network: it {'; it '.join(problems)}. Is -model_name right?")
    net.load_state_dict(state)


def _few(names: Sequence[str], most: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
