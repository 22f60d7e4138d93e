"""The networks: one table, and the calls that other programs need.

create_model(name, width=64)             a new network
list_models()                            the names
load_checkpoint(path, model_name=None)   a trained one, in eval mode, on the CPU; .pth, or exported .onnx or .xml
"""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from utils.errors import UserError

from . import rpg
from .blocks import STRIDE, group_norm, kaiming, pytorch_default
from .checkpoint import ReleasedNames, load_strictly, read_checkpoint
from .exported import ExportedNetwork
from .multitask import RELEASED_NAMES, RELEASED_PLUS_NAMES, RELEASED_UNUSED, MultiTaskUNet, deep_head

logger = logging.getLogger(__name__)

PAPER = "ISBI 2021"
PAPER_WIDTH = 64
PLUS = "TRFE+, Comput. Biol. Med. 2023"
BOTH = ("nodule", "gland")


@dataclass(frozen=True)
class Network:
    """One row of the table.

    build: (width=..., tasks=...) -> module. tasks: what it is trained on; a one-task network can learn another
    single task. source: where it is described. published: (mean IoU in % on TN3K's test images with its standard
    deviation over five folds, authors' protocol; where it was published). released: how the names of a released
    state dict turn into ours, None where no release has this network. stride: input sides are multiples of it.
    """

    build: Callable[..., nn.Module]
    tasks: tuple[str, ...]
    source: str
    published: tuple[tuple[str, str], ...] = ()
    released: ReleasedNames | None = None
    stride: int = STRIDE


_FAMILY = ReleasedNames(RELEASED_NAMES, RELEASED_UNUSED)
_PLUS = ReleasedNames(RELEASED_PLUS_NAMES, RELEASED_UNUSED)
_README = "README of the release, 2021"

NETWORKS: dict[str, Network] = {
    "unet": Network(
        partial(MultiTaskUNet, init=kaiming),
        ("nodule",),
        "U-Net, the paper's baseline",
        (("63.51 +- 0.44", _README), ("65.99 +- 0.66", "TRFE+ paper")),
        _FAMILY,
    ),
    "mtnet": Network(MultiTaskUNet, BOTH, f"two decoders, no guide; {PAPER}", (("67.91 +- 0.35", _README),), _FAMILY),
    "trfe": Network(
        partial(MultiTaskUNet, guide=rpg.MaskGuide),
        BOTH,
        f"RPG-A: x + x * P; {PAPER}",
        (("68.44 +- 0.38", f"{_README}, as TRFE-1"),),
        _FAMILY,
    ),
    "trfe1": Network(
        partial(MultiTaskUNet, guide=rpg.FeatureGuide),
        BOTH,
        f"RPG-B as released: x + x * G; {PAPER}",
        (("68.18 +- 0.19", f"{_README}, as TRFE-2"),),
        _FAMILY,
    ),
    "trfe2": Network(
        partial(MultiTaskUNet, guide=rpg.FusedGuide),
        BOTH,
        f"RPG-C as released: x + fuse(cat[x, G]); {PAPER}",
        (("67.78 +- 0.34", f"{_README}, as TRFE-3"),),
        _FAMILY,
    ),
    "trfe-b": Network(
        partial(MultiTaskUNet, guide=rpg.GatedFeatureGuide),
        BOTH,
        f"RPG-B as the figure draws it: x + x * sigmoid(conv(G)); {PAPER}",
    ),
    "trfe-c": Network(
        partial(MultiTaskUNet, guide=rpg.JointFeatureGuide),
        BOTH,
        f"RPG-C as the figure draws it: x + x * conv(cat[x, G]); {PAPER}",
    ),
    "trfeplus": Network(
        partial(
            MultiTaskUNet,
            guide=rpg.AttentionGuide,
            norm=group_norm,
            nodule_head=deep_head,
            predicts_size=True,
            init=pytorch_default,
        ),
        BOTH,
        f"gland attention, nodule size; {PLUS}",
        (("71.38 +- 0.43", "TRFE+ paper"),),
        _PLUS,
    ),
}


def list_models() -> list[str]:
    """The names that create_model takes."""
    return list(NETWORKS)


def network(name: str) -> Network:
    """The table's row for `name`. UserError, with the nearest name, where there is none."""
    if name not in NETWORKS:
        nearest = difflib.get_close_matches(name.lower(), NETWORKS, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"there is no model named {name!r}.{hint} The models are: {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def create_model(name: str, width: int = PAPER_WIDTH, tasks: Sequence[str] | None = None) -> nn.Module:
    """A new network of the table, initialised as in the release.

    `width` is the number of channels of the first stage, the paper's being 64; `tasks` changes what a one-task
    network learns, for example ("gland",). Called on images (B, 3, H, W), ImageNet-normalised, it answers a dict of
    raw outputs: logits `nodule` and/or `gland` (B, 1, H, W), and for some `size` (B, 1).

    UserError (a ValueError) for an unknown name, a width the network cannot have or tasks that do not suit it.
    """
    row = network(name)
    tasks = tuple(tasks or row.tasks)
    if len(set(tasks)) != len(tasks) or len(tasks) != len(row.tasks) or not set(tasks) <= set(BOTH):
        raise UserError(f"{name} has {len(row.tasks)} task(s), {row.tasks} by default; got {tasks}.")
    try:
        if width < 1:
            raise ValueError("it must be 1 or more")
        return row.build(width=width, tasks=tasks)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot have -width {width} ({error}). Widths 4, 8, 16, 32 and multiples of 64 suit every model."
        ) from error


def load_checkpoint(path: str | Path, model_name: str | None = None) -> nn.Module:
    """The network that a checkpoint holds, in eval mode on the CPU.

    A checkpoint of this project knows its network; one of the authors' release does not and needs `model_name`.
    An exported file answers an ExportedNetwork, which takes one size of image and cannot be trained.
    UserError where the file is missing, broken or foreign, or its parameters are not those of the network.
    """
    return restore(read_checkpoint(path), model_name)


def restore(checkpoint: dict, model_name: str | None = None) -> nn.Module:
    """The network of a checkpoint that read_checkpoint answered, in eval mode on the CPU."""
    path, own = checkpoint["path"], checkpoint.get("model")
    if own is not None and model_name not in (None, own["name"]):
        raise UserError(f"{path} holds {own['name']}, not {model_name}: leave -model_name out.")
    if "state_dict" not in checkpoint:
        return ExportedNetwork(checkpoint).eval()
    state = checkpoint["state_dict"]
    if own is not None:
        net = create_model(**own)
    else:
        if model_name is None:
            raise UserError(
                f"{path} does not know which model it holds (the authors' released files do not): "
                f"name it with -model_name, one of {', '.join(list_models())}."
            )
        names = network(model_name).released
        if names is None:
            raise UserError(f"{path} is a released state dict, and the release has no {model_name}.")
        state, unused = names.convert(state, path)
        if unused:
            logger.info("%s: left out layers that no forward pass uses: %s", path, ", ".join(unused))
        net = create_model(model_name)
    load_strictly(net, state, path)
    return net.eval()


def transfer(source: nn.Module, target: nn.Module, strict: bool = False) -> int:
    """Copy the parameters of `source` that `target` has too, in name and shape; answers how many tensors.

    Between two one-task networks of different tasks, the decoder and head of the one count as those of the other:
    the paper's pretrained U-Net learns glands first. UserError where nothing fits, or with `strict` not everything.
    """
    state, own = source.state_dict(), target.state_dict()
    if len(source.tasks) == len(target.tasks) == 1:
        old, new = f".{source.tasks[0]}.", f".{target.tasks[0]}."
        state = {name.replace(old, new): value for name, value in state.items()}
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    # Biases and counters fit between any widths; without a weight nothing was carried over.
    if not any(value.ndim > 1 for value in fitting.values()) or (strict and fitting.keys() != own.keys()):
        raise UserError(
            f"the weights do not fit: {len(fitting)} of {len(own)} tensors agree in name and shape. "
            f"Are -model_name and -width those of the checkpoint?"
        )
    target.load_state_dict({**own, **fitting})
    return len(fitting)
