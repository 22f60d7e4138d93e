"""Write a trained network as ONNX or OpenVINO, if what is written agrees with PyTorch on test images.

python export.py -load_path ./run/run_0/trfe_best.pth -format openvino
"""

import argparse
import hashlib
import json
import logging
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataloaders import TESTING
from dataloaders.datasets import EvalSet
from dataloaders.samples import Sample, list_images, read_image
from dataloaders.transforms import MEAN, STD, normalise, resize_image
from model import PAPER_WIDTH, load_checkpoint, restore
from model.checkpoint import read_trainable
from model.exported import FORMAT
from model.formats import FORMATS
from utils.errors import UserError, run_script
from utils.options import complete_tested, export_parser
from utils.report import score

# What an exported network may differ by. In float32 only the order of sums changes, which moves a probability by some
# 1e-4 and hardly a pixel across the threshold; int8 rounds everything and is judged by its masks alone.
MAX_DIFFERENCE = 1e-3
MAX_IOU_CHANGE = 0.002
MAX_IOU_CHANGE_INT8 = 0.005

CALIBRATION_IMAGES = 300
BATCH = 8

T = TypeVar("T")


def main() -> None:
    args = export_parser().parse_args()
    checkpoint = read_trainable(args.load_path)
    net = restore(checkpoint, args.model_name)
    metadata = complete(args, net, checkpoint)
    tested = TESTING[args.test_dataset](args.data_root)
    samples = spread(tested, args.limit)
    calibration = calibration_images(args, tested) if args.int8 else []

    target = FORMATS[args.format]
    precision = "int8" if args.int8 else "float32"
    print(f"{args.load_path} as {args.format}, {precision}, {args.input_size} x {args.input_size}", flush=True)
    model = target.convert(net, args.input_size, calibration)
    try:
        with TemporaryDirectory(dir=args.out.parent, prefix=".export-") as folder:
            draft = Path(folder, args.out.name)
            target.write(model, draft, json.dumps(metadata))
            comparison = compare(net, load_checkpoint(draft), samples, args.input_size)
            print(f"compared with PyTorch on {len(samples)} test images of {args.test_dataset}: {comparison}")
            check(comparison, args.int8)
            publish(draft, args.out, target.suffixes)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error}. Choose another place with -out.") from error
    print(f"Done. Evaluate with: python eval.py -load_path {args.out}")


def complete(args: argparse.Namespace, net: nn.Module, checkpoint: dict) -> dict:
    """Fill in what the checkpoint knows, refuse what cannot work; answers the metadata of the exported file."""
    name = complete_tested(args, net.tasks, checkpoint)
    suffix = FORMATS[args.format].suffixes[0]
    args.out = args.out or args.load_path.with_name(f"{args.load_path.stem}{'_int8' if args.int8 else ''}{suffix}")
    if args.out.suffix != suffix:
        raise UserError(f"-out {args.out}: the name of an {args.format} file ends in {suffix}.")
    if not args.out.parent.is_dir():
        raise UserError(f"-out {args.out}: there is no folder {args.out.parent}. Make it first.")
    if args.int8 != (args.calibration is not None):
        raise UserError("-int8 and -calibration <folder of images> belong together: give both, or neither for float32.")
    project = tomllib.loads((Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with open(args.load_path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "format": FORMAT,
        "version": project["version"],
        "model": checkpoint.get("model", {"name": name, "width": PAPER_WIDTH, "tasks": list(net.tasks)}),
        "input_size": args.input_size,
        # In decimals, as they are known: float32 shows them with eight more digits.
        "mean": MEAN.astype(float).round(6).tolist(),
        "std": STD.astype(float).round(6).tolist(),
        "int8": args.int8,
        "epoch": checkpoint.get("epoch"),
        "args": checkpoint.get("args", {}),
        "sha256": sha256,
    }


def calibration_images(args: argparse.Namespace, tested: Sequence[Sample]) -> list[Tensor]:
    """Images of the folder -calibration, (3, S, S) each. UserError for none, or for test images among them."""
    paths = list_images(args.calibration)
    if not paths:
        raise UserError(f"-calibration {args.calibration}: there is no such folder, or it holds no images.")
    test_paths = {sample.image.resolve() for sample in tested}
    shared = next((path for path in paths if path.resolve() in test_paths), None)
    if shared is not None:
        raise UserError(
            f"-calibration {args.calibration}: {shared.name} is one of the test images, on which int8 would then look "
            f"better than it is. Give training images, such as tn3k/trainval-image."
        )
    chosen = tqdm(spread(paths, CALIBRATION_IMAGES), desc="calibrating", unit="image", leave=False, disable=None)
    return [normalise(resize_image(read_image(path), args.input_size)[None])[0] for path in chosen]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, at even distances from the first to the last."""
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, min(most, len(items)))]


@dataclass(frozen=True)
class Comparison:
    """difference: the largest of any probability (or size); iou, exported_iou: mean IoU of nodules, clean protocol."""

    difference: float
    iou: float
    exported_iou: float

    @property
    def change(self) -> float:
        return self.exported_iou - self.iou

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e}, "
            f"IoU {self.exported_iou:.4f} instead of {self.iou:.4f} ({self.change:+.4f})"
        )


@torch.inference_mode()
def compare(net: nn.Module, exported: nn.Module, samples: Sequence[Sample], size: int) -> Comparison:
    """Both networks in float32 on the same test images."""
    tested = EvalSet(samples, size)
    differences, ious = [], []
    for start in tqdm(range(0, len(tested), BATCH), desc="comparing", unit="batch", leave=False, disable=None):
        batch, images = tested.batch(range(start, min(start + BATCH, len(tested))))
        ours, theirs = probabilities(net, batch), probabilities(exported, batch)
        differences += [(ours[name] - theirs[name]).abs().max() for name in ours]
        for index, image in enumerate(images):
            ious.append([score(image, {"nodule": answer["nodule"][index, 0]})[0]["iou"] for answer in (ours, theirs)])
    return Comparison(float(torch.stack(differences).max()), *np.mean(ious, axis=0).tolist())


def probabilities(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The outputs for images (B, 3, S, S), logits as probabilities (B, 1, S, S)."""
    return {name: torch.sigmoid(value) if name in net.tasks else value for name, value in net(images).items()}


def check(comparison: Comparison, int8: bool) -> None:
    """UserError unless the exported network is close enough to PyTorch's; nan is not."""
    if int8:
        if not abs(comparison.change) <= MAX_IOU_CHANGE_INT8:
            raise UserError(
                f"nothing was written: {comparison}, but in int8 the IoU may change by {MAX_IOU_CHANGE_INT8} at most. "
                f"Calibrate on more images of the kind the network will see; compare on more (-limit)."
            )
    elif not (comparison.difference <= MAX_DIFFERENCE and abs(comparison.change) <= MAX_IOU_CHANGE):
        raise UserError(
            f"nothing was written: {comparison}, but a probability may differ by {MAX_DIFFERENCE} and the IoU by "
            f"{MAX_IOU_CHANGE} at most. Please report this network and the versions of the packages."
        )


def publish(draft: Path, out: Path, suffixes: Sequence[str]) -> None:
    """Move the files of an export to their place."""
    first, *others = suffixes
    if others:
        # The file that is loaded goes first and comes last, so that it never stands beside the weights of another.
        out.unlink(missing_ok=True)
    for suffix in (*others, first):
        os.replace(draft.with_suffix(suffix), out.with_suffix(suffix))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_script(main)
