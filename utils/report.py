"""What an evaluation leaves behind: scores of each image, a summary, masks, overlays, and a table to read."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dataloaders.datasets import EvalImage
from dataloaders.samples import mask_authors, mask_clean
from dataloaders.transforms import resize_mask
from utils.errors import UserError
from utils.metrics import AUTHORS_METRICS, authors_metrics, clean_metrics, summarise, summarise_clean
from utils.visual import overlay

THRESHOLD = 0.5
# TN3K's official test set; published figures are shown beside results on these only.
TN3K_TEST_IMAGES = 614

Row = dict[str, Any]


def score(image: EvalImage, probabilities: dict[str, Tensor]) -> tuple[Row, dict[str, np.ndarray]]:
    """(scores of an image under both protocols, predicted masks (H, W) bool by task at native size).

    probabilities: task -> (S, S) at the network's size. The authors' scores are taken there, on the authors' mask
    rule, under names that begin with authors_; the clean ones at native size, the map brought there first (bilinear).
    """
    height, width = image.mask.shape
    predicted = {
        task: F.interpolate(p[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
        >= THRESHOLD
        for task, p in probabilities.items()
    }
    probability = probabilities["nodule"].numpy()
    small = resize_mask(mask_authors(image.mask), len(probability))
    # A nodule too small to survive the resize cannot be scored at the network's size.
    authors = authors_metrics(probability, small) if small.any() else dict.fromkeys(AUTHORS_METRICS, math.nan)
    row = {
        "name": image.sample.name,
        **clean_metrics(predicted["nodule"], mask_clean(image.mask)),
        **{f"authors_{name}": value for name, value in authors.items()},
    }
    return row, predicted


def score_batch(
    folder: Path, outputs: dict[str, Tensor], batch: Sequence[EvalImage], tasks: Sequence[str]
) -> list[Row]:
    """Scores of the images of a batch from the network's logits (B, 1, S, S) by task; their pictures go to `folder`."""
    rows = []
    for index, image in enumerate(batch):
        row, predicted = score(image, {task: outputs[task][index, 0].sigmoid() for task in tasks})
        write_pictures(folder, image, predicted, row["iou"])
        rows.append(row)
    return rows


def write_pictures(folder: Path, image: EvalImage, predicted: dict[str, np.ndarray], iou: float) -> None:
    """Predicted masks (0 and 255, native size) and an overlay of an image as PNG."""
    name = f"{image.sample.image.stem}.png"
    for task, mask in predicted.items():
        write_png(folder / ("masks" if task == "nodule" else f"masks-{task}") / name, mask.astype(np.uint8) * 255)
    caption = f"{image.sample.name}  IoU {iou:.3f}"
    true = mask_clean(image.mask)
    drawn = overlay(image.native, true, predicted["nodule"], predicted.get("gland"), caption)
    write_png(folder / "overlays" / name, drawn)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write (H, W) grey or (H, W, 3) RGB uint8. UserError where that cannot be."""
    encoded = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1]
    _write(path, encoded.tobytes())


def write_summary(folder: Path, rows: Sequence[Row], facts: Row) -> dict[str, Any]:
    """Write per_image.csv and summary.json; answers the summary."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    table = io.StringIO()
    csv.writer(table).writerows(lines)
    _write(folder / "per_image.csv", table.getvalue().encode())
    authors = [{name: row[f"authors_{name}"] for name in AUTHORS_METRICS} for row in rows]
    clean = [{k: v for k, v in row.items() if k != "name" and not k.startswith("authors_")} for row in rows]
    summary = {
        **facts,
        "images": len(rows),
        "clean": {"rule": "native size, masks > 127, p >= 0.5", **summarise_clean(clean)},
        "authors": {
            "rule": f"{facts['input_size']} x {facts['input_size']}, the release's mask rule, p >= 0.5",
            "per_image": summarise(authors),
        },
    }
    _write(folder / "summary.json", (json.dumps(_without_nan(summary), indent=2) + "\n").encode())
    return summary


def _without_nan(value: Any) -> Any:
    """JSON knows no nan: an undefined value is null there."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}. Choose another folder with -save_dir.") from error


def evaluation_table(summary: dict[str, Any], published: Sequence[tuple[str, str]]) -> str:
    """The summary as a table for the terminal, the published figures below where they can be compared."""
    clean, authors = summary["clean"], summary["authors"]
    per_image, pooled = clean["per_image"], clean["pooled"]
    lines = [
        f"{summary['model']}, fold {summary['fold']}, {summary['input_size']} x {summary['input_size']}, on "
        f"{summary['images']} test images of {summary['test_dataset']}",
        "",
        f"Clean protocol ({clean['rule']})",
        f"  {'':<12}{'mean':>8}  {'95 % interval':<18}{'median':>8}{'pooled':>9}{'images':>8}",
    ]
    for name, values in per_image.items():
        unit = " px" if name in ("hd95", "assd") else ""
        interval = f"[{values['low']:.3f}, {values['high']:.3f}]"
        share = f"{pooled[name]:9.3f}" if name in pooled else " " * 9
        lines.append(
            f"  {name + unit:<12}{values['mean']:8.3f}  {interval:<18}{values['median']:8.3f}{share}{values['n']:8d}"
        )
    lines += [
        f"  {clean['images']['empty_prediction']} images with an empty prediction",
        "",
        f"Authors' protocol ({authors['rule']}), means over images",
    ]
    means = {name: values["mean"] for name, values in authors["per_image"].items()}
    lines.append("  " + "  ".join(f"{name} {100 * value:.2f}" for name, value in means.items() if name != "hd"))
    lines.append(
        f"  hd {means['hd']:.2f} px; Dice as in the paper's tables, 2 IoU / (1 + IoU): "
        f"{200 * means['iou'] / (1 + means['iou']):.2f}"
    )
    return "\n".join([*lines, *_published_lines(summary, published)])


def _published_lines(summary: dict[str, Any], published: Sequence[tuple[str, str]]) -> list[str]:
    if summary["test_dataset"] != "TN3K" or not published:
        return []
    if summary["images"] != TN3K_TEST_IMAGES:
        return ["", f"Not TN3K's {TN3K_TEST_IMAGES} test images: no published figure compares with this."]
    figures = "; ".join(f"{figure} ({source})" for figure, source in published)
    return ["", f"Published IoU on these images, mean of five folds, authors' protocol: {figures}"]
