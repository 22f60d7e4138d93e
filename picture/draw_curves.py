"""Draws learning curves of runs: `python picture/draw_curves.py run/run_0 run/run_1 ... -out docs/curves.png`.

Left the training loss of the nodules per image, right the validation IoU, epoch by epoch, from each log.csv.
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#000000"]


def read_run(folder: Path) -> tuple[str, dict[str, list[float]]]:
    """(the model's name, the columns of log.csv)."""
    arguments = json.loads((folder / "args.json").read_text(encoding="utf-8"))["arguments"]
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
    # A two-task network's loss is the sum over its batch of nodule images, a one-task network's the mean.
    images = arguments["batch_size"] if "gland" in columns else 1
    columns["nodule"] = [value / images for value in columns["nodule"]]
    return arguments["model_name"], columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("-out", type=Path, default=Path("curves.png"), help="picture to write")
    args = parser.parse_args()

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for folder, colour in zip(args.runs, COLOURS, strict=False):
        name, columns = read_run(folder)
        for ax, column in zip(axes, ("nodule", "val_iou"), strict=True):
            ax.plot(columns["epoch"], columns[column], color=colour, label=name, linewidth=1.4)
    for ax, title in zip(axes, ("training: nodule loss per image", "validation: mean IoU"), strict=True):
        ax.set_xlabel("epoch")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].legend(fontsize=8, ncols=2)
    figure.savefig(args.out, dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
