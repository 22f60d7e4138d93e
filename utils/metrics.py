"""Segmentation metrics under two protocols, and their summaries over a test set.

`authors_metrics` follows the evaluation of the TRFE-Net release (Gong et al., ISBI 2021), its oddities
included, so that numbers can be compared with the published ones. `clean_metrics` is this project's default.
All distances are in pixels: the ultrasound sets carry no pixel spacing.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial import KDTree
from scipy.stats import bootstrap


class Confusion(NamedTuple):
    """Pixel counts of a binary prediction against its mask."""

    tp: int
    fp: int
    fn: int
    tn: int


def confusion(pred: np.ndarray, mask: np.ndarray) -> Confusion:
    """Count the true and false positives and negatives of `pred` (H, W) against `mask` (H, W), both bool.

    Raises ValueError when the shapes differ or are not 2-D, or when either array is not bool.
    """
    _check_same_image(pred, mask)
    for name, array in (("prediction", pred), ("mask", mask)):
        # No silent cast: the background of a JPEG mask holds 1-4 as well as 0, and all of it would turn true.
        if array.dtype != np.bool_:
            raise ValueError(f"the {name} must be bool, found {array.dtype}")
    tp = np.count_nonzero(pred & mask)
    fp = np.count_nonzero(pred) - tp
    fn = np.count_nonzero(mask) - tp
    return Confusion(tp, fp, fn, mask.size - tp - fp - fn)


# What authors_metrics answers, in the release's order and spelling.
AUTHORS_METRICS = ("precision", "recall", "specificity", "F1_score", "auc", "acc", "iou", "dice", "mae", "hd")


def authors_metrics(prob: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Score one image as the TRFE-Net release does.

    prob: (H, W) nodule probability in [0, 1], at the network's input size; foreground is prob >= 0.5.
    mask: (H, W) bool, at the same size.

    What differs from the usual definitions:
    - a TP count of 0 becomes 1, in numerators and denominators alike, for every metric but AUC;
    - AUC is that of the binarised prediction, which is (recall + specificity) / 2;
    - hd is the larger of the two directed 95th percentiles over *all* foreground pixels, not the boundary:
      a pixel inside the other region counts 0;
    - for hd alone, an empty prediction is given one foreground pixel at (0, 0);
    - dice and F1_score are the same number.

    Specificity and AUC are nan when the mask covers the whole image.
    Raises ValueError when the shapes differ or are not 2-D, when prob leaves [0, 1] or holds nan, and when
    the mask is not bool or is empty: AUC and hd have no meaning without a nodule.
    """
    _check_same_image(prob, mask)
    if not np.all((prob >= 0) & (prob <= 1)):
        raise ValueError(f"probabilities must lie in [0, 1], found {prob.min()} to {prob.max()}")
    pred = prob >= 0.5
    tp, fp, fn, tn = confusion(pred, mask)
    if tp + fn == 0:
        raise ValueError("the mask is empty: the authors' protocol is undefined without a nodule")

    specificity = _ratio(tn, tn + fp)
    auc = (tp / (tp + fn) + specificity) / 2
    tp = max(tp, 1)
    f1 = 2 * tp / (2 * tp + fp + fn)

    if not pred.any():
        pred[0, 0] = True
    return {
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "specificity": specificity,
        "F1_score": f1,
        "auc": auc,
        "acc": (tp + tn) / (tp + fp + fn + tn),
        "iou": tp / (tp + fp + fn),
        "dice": f1,
        "mae": float(np.abs(prob - mask.astype(np.float64)).mean()),
        "hd": _percentile95(*_directed_distances(*_around_both(pred, mask))),
    }


def clean_metrics(pred: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Score one image under the clean protocol; both arrays (H, W) bool, at the image's own size.

    Keys: iou, dice, precision, recall, specificity; hd95 and assd in pixels; the counts tp, fp, fn and tn,
    which `summarise_clean` pools.

    hd95 is the larger of the two directed 95th percentiles (linear interpolation) of the distance from each
    boundary pixel to the other boundary. assd is the mean over the boundary pixels of both (MedPy from 0.5 on;
    Metrics Reloaded, Maier-Hein et al., 2024).

    A ratio with nothing in its denominator is nan (precision of an empty prediction, recall of an empty
    mask), except that an empty prediction of an empty mask is perfect: iou = dice = 1, hd95 = assd = 0. Where
    just one of the two is empty there is no boundary to measure to, and hd95 = assd = the image's diagonal.
    Raises ValueError when the shapes differ or are not 2-D, or when either array is not bool.
    """
    counts = confusion(pred, mask)
    hd95, assd = _boundary_distances(pred, mask)
    specificity = _ratio(counts.tn, counts.tn + counts.fp)
    return {
        **overlap(counts),
        "specificity": specificity,
        "hd95": hd95,
        "assd": assd,
        **counts._asdict(),
    }


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean over images.

    values: (N,), one per image; nan marks an image the metric is undefined for, which is left out.
    Returns (low, high), and (nan, nan) where fewer than two images are left: one says nothing of the spread.
    """
    defined = _defined(values)
    if defined.size < 2:
        return math.nan, math.nan
    # The percentile method, unlike BCa, is defined for constant values too. Batches bound the memory.
    rng = np.random.default_rng(seed)
    result = bootstrap((defined,), np.mean, confidence_level=0.95, method="percentile", batch=1000, rng=rng)
    low, high = result.confidence_interval
    return float(low), float(high)


def summarise(rows: list[dict[str, float]], seed: int = 0) -> dict[str, dict[str, float]]:
    """Summarise per-image rows (of either protocol) over the images: metric -> mean, low, high, median, n.

    low and high bound the mean's 95 % bootstrap interval, n is the number of images the metric is defined
    for; with n = 0 the rest is nan. The pixel counts are left to `summarise_clean`.
    Raises ValueError when there are no rows.
    """
    if not rows:
        raise ValueError("no rows to summarise")
    return {
        name: _summary(np.array([row[name] for row in rows], dtype=np.float64), seed)
        for name in rows[0]
        if name not in Confusion._fields
    }


def summarise_clean(rows: list[dict[str, float]], seed: int = 0) -> dict[str, dict]:
    """Summarise the rows of `clean_metrics`.

    per_image: what `summarise` returns, every image weighing the same;
    pooled: iou, dice, precision and recall of the pixels of all images taken together;
    images: total, and empty_prediction, the number of images without a predicted pixel. Unless its mask is
    empty too, such an image enters hd95 and assd with its diagonal.
    Raises ValueError when there are no rows.
    """
    per_image = summarise(rows, seed)
    total = Confusion(*(int(sum(row[name] for row in rows)) for name in Confusion._fields))
    empty = sum(row["tp"] + row["fp"] == 0 for row in rows)
    return {
        "per_image": per_image,
        "pooled": overlap(total),
        "images": {"total": len(rows), "empty_prediction": int(empty)},
    }


def overlap(counts: Confusion) -> dict[str, float]:
    """IoU, Dice, precision and recall of the counts, be they of one image or of many pooled."""
    tp, fp, fn, _ = counts
    union = tp + fp + fn
    return {
        "iou": tp / union if union else 1.0,
        "dice": 2 * tp / (tp + union) if union else 1.0,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
    }


def _boundary_distances(pred: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """(HD95, ASSD) in pixels, the image's diagonal where just one region is empty, 0 where both are."""
    empty = (not pred.any(), not mask.any())
    if any(empty):
        distance = 0.0 if all(empty) else math.hypot(*mask.shape)
        return distance, distance
    a, b = (np.argwhere(_boundary(region)) for region in _around_both(pred, mask))
    # Boundaries are few pixels, for which trees are faster than distance transforms of the whole window.
    there, back = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    return _percentile95(there, back), float(np.concatenate([there, back]).mean())


def _around_both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both regions cut to the smallest rectangle that holds them: distances between them are the same there."""
    either = a | b
    rows, columns = (np.flatnonzero(either.any(axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return a[window], b[window]


def _boundary(region: np.ndarray) -> np.ndarray:
    """The pixels of `region` (H, W) with a 4-neighbour outside it; outside the image is outside the region.

    The convention of MedPy and most published surface distances: thin, and closed at the image's border.
    """
    return region & ~binary_erosion(region)


def _directed_distances(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each true pixel of `a` to the nearest of `b`, and the reverse; neither may be empty.

    Two distance transforms, whose cost grows with the window and not with the product of the two regions.
    """
    return distance_transform_edt(~b)[a], distance_transform_edt(~a)[b]


def _percentile95(there: np.ndarray, back: np.ndarray) -> float:
    """The larger of the 95th percentiles (linear interpolation) of the two directed distances."""
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _summary(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean, its interval, median and number of the values that are not nan."""
    defined = _defined(values)
    low, high = bootstrap_interval(defined, seed)
    some = defined.size > 0
    return {
        "mean": float(defined.mean()) if some else math.nan,
        "low": low,
        "high": high,
        "median": float(np.median(defined)) if some else math.nan,
        "n": defined.size,
    }


def _defined(values: np.ndarray) -> np.ndarray:
    """The values of the images that a metric is defined for."""
    values = np.asarray(values, dtype=np.float64)
    return values[~np.isnan(values)]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _check_same_image(first: np.ndarray, mask: np.ndarray) -> None:
    if first.shape != mask.shape or mask.ndim != 2:
        raise ValueError(f"prediction and mask must share one (height, width), found {first.shape} and {mask.shape}")
