"""A run folder that explains itself: run/run_<n>/ with args.json, log.csv, TensorBoard and checkpoints."""

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from torch import nn

from model.checkpoint import read_trainable, save_checkpoint
from utils.errors import UserError

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "tensorboardX", "tqdm", "scikit-image", "scipy")


class Run:
    """The folder of one training run. What it writes is about whole epochs, so that a run can go on after each."""

    def __init__(self, folder: Path, model_name: str) -> None:
        self.folder, self.model_name = folder, model_name
        self.writer: SummaryWriter | None = None

    @classmethod
    def create(cls, root: Path, run_id: int, model_name: str) -> "Run":
        """A new folder: the next free number, or `run_id` if that is not negative and not taken."""
        number = run_id if run_id >= 0 else max(run_numbers(root), default=-1) + 1
        folder = root / f"run_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(
                f"{folder} exists. Go on with it by -resume_epoch or -load_path, or leave -run_id out for a new run."
            ) from error
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error}") from error
        return cls(folder, model_name)

    def checkpoint(self, which: str) -> Path:
        """Path of the checkpoint `best`, `last` or `epoch-<n>`."""
        return self.folder / f"{self.model_name}_{which}.pth"

    def describe(self, arguments: dict[str, Any], **facts: Any) -> None:
        """Write args.json: what one needs to know to repeat the run, with what it said before a run went on."""
        path = self.folder / "args.json"
        earlier = [json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
        content = {
            "arguments": arguments,
            "command": sys.argv,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "versions": versions(),
            "cores": os.cpu_count(),
            **facts,
            "earlier": earlier,
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def open_logs(self, epochs_done: int, steps_done: int) -> None:
        """Open log.csv and TensorBoard, dropping what an interrupted run wrote after its last whole epoch."""
        path = self.folder / "log.csv"
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                lines = file.readlines()
            path.write_text("".join(lines[: epochs_done + 1]), encoding="utf-8", newline="")
        self.writer = SummaryWriter(str(self.folder), purge_step=steps_done + 1 if steps_done else None)

    def close_logs(self) -> None:
        """Write out what TensorBoard still holds."""
        if self.writer is not None:
            self.writer.close()

    def log_epoch(self, row: dict[str, float], step: int) -> None:
        """Add a row to log.csv and its values to TensorBoard."""
        path = self.folder / "log.csv"
        new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, row)
            if new:
                table.writeheader()
            table.writerow(row)
        self.log_scalars("epoch", row, step)

    def log_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Add a picture (H, W, 3) uint8 to TensorBoard."""
        self.writer.add_image(name, image, step, dataformats="HWC")

    def save(self, which: str, net: nn.Module, facts: dict[str, Any]) -> None:
        """Write a checkpoint; with the state of the optimiser among the facts it can be gone on with."""
        save_checkpoint(self.checkpoint(which), {**facts, "state_dict": net.state_dict()})


class Onlooker(Run):
    """The run folder as the other processes of a run see it: one process writes."""

    def describe(self, arguments: dict[str, Any], **facts: Any) -> None:
        """Leave args.json to the process that writes; likewise everything below."""

    def open_logs(self, epochs_done: int, steps_done: int) -> None: ...

    def log_epoch(self, row: dict[str, float], step: int) -> None: ...

    def log_scalars(self, group: str, values: dict[str, float], step: int) -> None: ...

    def log_image(self, name: str, image: np.ndarray, step: int) -> None: ...

    def save(self, which: str, net: nn.Module, facts: dict[str, Any]) -> None: ...


def run_numbers(root: Path) -> list[int]:
    """The numbers of the run folders under `root`, ascending."""
    found = (re.fullmatch(r"run_(\d+)", path.name) for path in root.glob("run_*"))
    return sorted(int(match[1]) for match in found if match)


def find_checkpoint(root: Path, run_id: int, model_name: str, epoch: int) -> Path:
    """The checkpoint after `epoch` epochs of a run: `run_id`, or the newest if that is negative.

    That is <model>_epoch-<n>.pth where it was kept, otherwise <model>_last.pth. UserError where neither exists.
    """
    numbers = run_numbers(root)
    if not numbers:
        raise UserError(f"-resume_epoch {epoch}: there is no run under {root}. Start one without -resume_epoch.")
    run = Run(root / f"run_{run_id if run_id >= 0 else numbers[-1]}", model_name)
    for which in (f"epoch-{epoch}", "last"):
        if run.checkpoint(which).is_file():
            return run.checkpoint(which)
    raise UserError(
        f"-resume_epoch {epoch}: {run.folder} has neither {run.checkpoint(f'epoch-{epoch}').name} nor "
        f"{run.checkpoint('last').name}. Are -run_id and -model_name right?"
    )


def pretrained_weights(args: argparse.Namespace) -> dict | None:
    """The checkpoint that -pretrain names, None for "None"."""
    if args.pretrain == "None":
        return None
    if args.pretrain == "THYROID":
        return read_trainable(_thyroid_checkpoint(args.run_root, args.model_name))
    return read_trainable(args.pretrain)


def _thyroid_checkpoint(root: Path, model_name: str) -> Path:
    """The best checkpoint of the newest run of `model_name` on TG3K's glands."""
    for number in reversed(run_numbers(root)):
        run = Run(root / f"run_{number}", model_name)
        try:
            arguments = json.loads((run.folder / "args.json").read_text(encoding="utf-8"))["arguments"]
        except (OSError, ValueError, KeyError):
            continue
        if (arguments["model_name"], arguments["dataset"]) == (model_name, "TG3K") and run.checkpoint("best").is_file():
            return run.checkpoint("best")
    raise UserError(
        f"-pretrain THYROID: no run of {model_name} on TG3K under {root}. Train one first: "
        f"python train.py -model_name {model_name} -dataset TG3K"
    )


def git_commit() -> str | None:
    """The commit this code is at, with a + if it was changed since; None outside a git checkout."""
    try:
        here = Path(__file__).parent
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=40"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and the packages in use."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
