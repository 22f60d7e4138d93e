"""Both evaluation protocols against the release's answers, hand-worked numbers and independent libraries."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from utils.metrics import (
    Confusion,
    authors_metrics,
    bootstrap_interval,
    clean_metrics,
    confusion,
    summarise,
    summarise_clean,
)

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity" / "metrics.npz"


def picture(*lines: str) -> np.ndarray:
    """A bool image from rows of '#' (foreground) and '.' (background)."""
    return np.array([[pixel == "#" for pixel in line] for line in lines])


def certain(pred: np.ndarray) -> np.ndarray:
    """A probability map whose binarisation is `pred`."""
    return np.where(pred, 0.9, 0.2)


def blobs(seed: int, shape: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random probability map and a mask that overlaps its foreground; some touch the border."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 5)
    other = field + 0.6 * gaussian_filter(rng.normal(size=shape), 5)
    prob = 1 / (1 + np.exp(-4 * (field / field.std() - 0.5)))
    return prob, other > 0.5 * other.std()


SQUARE = picture(
    "......",
    ".##...",
    ".##...",
    "......",
)
SHIFTED = picture(
    "......",
    "..##..",
    "..##..",
    "......",
)
NOTHING = np.zeros_like(SQUARE)


# --- the authors' protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(9))
def test_authors_metrics_agree_with_the_release(case):
    if not PARITY.exists():
        pytest.skip("the folder shared/parity, with the release's answers, is absent")
    with np.load(PARITY) as parity:
        names, value = parity["names"].tolist(), parity["value"][case]
        found = authors_metrics(parity["prob"][case], parity["mask"][case] > 0.5)
    assert list(found) == names
    for name, expected in zip(names, value, strict=True):
        assert abs(found[name] - expected) <= 1e-6 * max(1, abs(expected)), name


def test_authors_metrics_by_hand():
    # 24 pixels, squares of 4 that share 2: TP 2, FP 2, FN 2, TN 18.
    # AUC = (2/4 + 18/20) / 2 = 0.7. MAE: 2 TP off by 0.1, 2 FP by 0.9, 2 FN by 0.8, 18 TN by 0.2:
    # (0.2 + 1.8 + 1.6 + 3.6) / 24 = 0.3. hd: both ways 0, 0 (inside), 1, 1; position 0.95 * 3 = 2.85 -> 1.
    assert authors_metrics(certain(SHIFTED), SQUARE) == pytest.approx(
        {
            "precision": 2 / 4,
            "recall": 2 / 4,
            "specificity": 18 / 20,
            "F1_score": 4 / 8,
            "auc": 0.7,
            "acc": 20 / 24,
            "iou": 2 / 6,
            "dice": 4 / 8,
            "mae": 0.3,
            "hd": 1.0,
        }
    )


def test_authors_tp_of_zero_counts_one_except_in_auc():
    mask, pred = picture("##......"), picture("....###.")
    # TP 0 -> 1, FP 3, FN 2, TN 3. AUC from the true counts: (0/2 + 3/6) / 2.
    found = authors_metrics(certain(pred), mask)
    assert found["precision"] == pytest.approx(1 / 4)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["iou"] == pytest.approx(1 / 6)
    assert found["dice"] == found["F1_score"] == pytest.approx(2 / 7)
    assert found["acc"] == pytest.approx(4 / 9)
    assert found["specificity"] == pytest.approx(3 / 6)
    assert found["auc"] == pytest.approx(0.25)


def test_authors_tp_of_one_stays_one():
    # TP 1, FP 1, FN 1, TN 1: the rule for TP = 0 adds nothing here.
    found = authors_metrics(certain(picture("##..")), picture("#.#."))
    assert (found["iou"], found["acc"]) == pytest.approx((1 / 3, 1 / 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_authors_probability_of_one_half_is_foreground(dtype):
    below = np.nextafter(dtype(0.5), dtype(0))
    prob = np.array([[0.5, 0.5, below, below]], dtype=dtype)
    # The two ties are TP and FP, the values just below FN and TN: precision 1/2, IoU 1/3. With the ties lost
    # (TP 0 -> 1, FN 2) it would be 1 and 1/3, with all four foreground 1/2 and 1/2.
    found = authors_metrics(prob, picture("#.#."))
    assert (found["precision"], found["iou"]) == pytest.approx((1 / 2, 1 / 3))


def test_authors_auc_is_of_the_binarised_prediction():
    # Ranked perfectly, so the AUC of the probabilities is 1; binarised, recall 1/2 and specificity 1: 0.75.
    prob = np.array([[0.9, 0.4, 0.3, 0.2]])
    assert authors_metrics(prob, picture("##.."))["auc"] == pytest.approx(0.75)


def test_authors_hd_counts_the_inside_as_zero():
    # A 9 x 9 square, predicted but for its centre. From the prediction every pixel lies inside: 0. From the
    # mask 80 zeros and a 1: position 0.95 * 80 = 76 -> 0. Boundaries see the hole: the prediction's has
    # 32 + 4 pixels, the 4 around the hole 3 away from the mask's; position 0.95 * 35 = 33.25 -> 3.
    mask = np.pad(np.ones((9, 9), dtype=bool), 1)
    pred = mask.copy()
    pred[5, 5] = False
    assert authors_metrics(certain(pred), mask)["hd"] == 0.0
    assert clean_metrics(pred, mask)["hd95"] == pytest.approx(3.0)


def test_authors_hd_interpolates_and_takes_the_larger_direction():
    # Mask x = 0, prediction x = 0..4: from the prediction 0, 1, 2, 3, 4, position 0.95 * 4 = 3.8 -> 3.8;
    # from the mask 0. Swapped, the same.
    short, long = picture("#......."), picture("#####...")
    assert authors_metrics(certain(long), short)["hd"] == pytest.approx(3.8)
    assert authors_metrics(certain(short), long)["hd"] == pytest.approx(3.8)


def test_authors_empty_prediction_gets_the_corner_for_hd_alone():
    mask = picture(
        ".....",
        ".....",
        ".....",
        "....#",
    )
    # One mask pixel at row 3, column 4: 5 from (0, 0) both ways. The corner is no FP: precision 1 / (1 + 0),
    # specificity 19/19, IoU 1 / (1 + 0 + 1).
    found = authors_metrics(np.full(mask.shape, 0.25), mask)
    assert found["hd"] == pytest.approx(5.0)
    assert (found["precision"], found["specificity"], found["iou"]) == pytest.approx((1, 1, 1 / 2))
    # MAE of p itself: 19 pixels off by 0.25, one by 0.75.
    assert found["mae"] == pytest.approx((19 * 0.25 + 0.75) / 20)


def test_authors_mask_of_the_whole_image_has_no_specificity():
    found = authors_metrics(certain(picture("##", "#.")), picture("##", "##"))
    assert math.isnan(found["specificity"])
    assert math.isnan(found["auc"])
    assert found["iou"] == pytest.approx(3 / 4)


def test_authors_metrics_leave_their_input_alone():
    prob, mask = np.full(SQUARE.shape, 0.1), SQUARE.copy()
    authors_metrics(prob, mask)
    assert np.all(prob == 0.1)
    assert np.array_equal(mask, SQUARE)


@pytest.mark.parametrize("seed", range(5))
def test_authors_metrics_agree_with_scikit_learn(seed):
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is a development package")
    prob, mask = blobs(seed)
    truth, pred = mask.ravel(), (prob >= 0.5).ravel()
    found = authors_metrics(prob, mask)
    assert 0.1 < found["iou"] < 0.95  # the blobs neither coincide nor part
    assert {name: found[name] for name in found if name != "hd"} == pytest.approx(
        {
            "precision": sk.precision_score(truth, pred),
            "recall": sk.recall_score(truth, pred),
            "specificity": sk.recall_score(truth, pred, pos_label=False),
            "F1_score": sk.f1_score(truth, pred),
            "auc": sk.roc_auc_score(truth, pred),
            "acc": sk.accuracy_score(truth, pred),
            "iou": sk.jaccard_score(truth, pred),
            "dice": sk.f1_score(truth, pred),
            "mae": sk.mean_absolute_error(truth.astype(float), prob.ravel()),
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_authors_hd_agrees_with_pairwise_distances(seed):
    prob, mask = blobs(seed, (24, 32))
    pairs = cdist(np.argwhere(prob >= 0.5), np.argwhere(mask))
    expected = max(np.percentile(pairs.min(axis=1), 95), np.percentile(pairs.min(axis=0), 95))
    assert authors_metrics(prob, mask)["hd"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prob", "mask", "message"),
    [
        (np.full((4, 5), 0.5), SQUARE, r"\(4, 5\) and \(4, 6\)"),
        (np.full((1, 4, 6), 0.5), SQUARE[None], r"\(1, 4, 6\)"),
        (np.full((4, 6), 1.5), SQUARE, r"found 1.5 to 1.5"),
        (np.full((4, 6), -0.5), SQUARE, r"found -0.5 to -0.5"),
        (np.where(SQUARE, np.nan, 0.5), SQUARE, "found nan"),
        (np.full((4, 6), 0.5), NOTHING, "mask is empty"),
        (np.full((4, 6), 0.5), SQUARE.astype(np.uint8) * 255, "mask must be bool, found uint8"),
    ],
)
def test_authors_metrics_refuse(prob, mask, message):
    with pytest.raises(ValueError, match=message):
        authors_metrics(prob, mask)


# --- the clean protocol ------------------------------------------------------------------------------------


def test_confusion_by_hand():
    pred, mask = picture("###.....", "........"), picture("##..####", "........")
    assert confusion(pred, mask) == Confusion(tp=2, fp=1, fn=4, tn=9)


def test_clean_metrics_by_hand():
    # The prediction (columns 1-3) has the mask's 2 columns and one more: TP 4, FP 2, FN 0, TN 18. All pixels
    # are boundary. From the prediction: 0 (4 times), 1 (twice): mean 1/3, 95th percentile at 4.75 -> 1.
    # From the mask: 0. ASSD = 2 / 10 over the 10 distances at once; the mean of the two means would be 1/6.
    assert clean_metrics(SQUARE | SHIFTED, SQUARE) == pytest.approx(
        {
            "iou": 4 / 6,
            "dice": 8 / 10,
            "precision": 4 / 6,
            "recall": 1.0,
            "specificity": 18 / 20,
            "hd95": 1.0,
            "assd": 1 / 5,
            "tp": 4,
            "fp": 2,
            "fn": 0,
            "tn": 18,
        }
    )


def test_clean_tp_of_zero_stays_zero():
    # Apart: TP 0, FP 1, FN 1. One pixel each, 3 apart.
    found = clean_metrics(picture("#...."), picture("...#."))
    assert (found["iou"], found["dice"], found["precision"], found["recall"]) == (0, 0, 0, 0)
    assert (found["hd95"], found["assd"]) == (3, 3)


def test_clean_distances_are_of_the_boundary():
    # A full 5 x 5 image against the same without its centre. The full boundary is the 16 pixels at the
    # image's border; the other has the centre's four 4-neighbours too, each 1 away from it. From the holed
    # one 16 zeros and 4 ones, back 16 zeros. ASSD = 4 / 36; over all pixels it would be 1 / 49.
    # 95th percentile of the 20 at position 18.05 -> 1.
    full = np.ones((5, 5), dtype=bool)
    holed = full.copy()
    holed[2, 2] = False
    found = clean_metrics(holed, full)
    assert found["assd"] == pytest.approx(1 / 9)
    assert found["hd95"] == pytest.approx(1.0)


def test_clean_hd95_interpolates_and_takes_the_larger_direction():
    # As for the authors' hd: 0, 1, 2, 3, 4 at position 3.8 (a line is all boundary). ASSD = 10 / 6.
    short, long = picture("#......."), picture("#####...")
    for pred, mask in ((short, long), (long, short)):
        found = clean_metrics(pred, mask)
        assert (found["hd95"], found["assd"]) == pytest.approx((3.8, 10 / 6))


def test_clean_perfect_prediction():
    found = clean_metrics(SQUARE, SQUARE)
    names = ("iou", "dice", "precision", "recall", "specificity", "hd95", "assd")
    assert [found[name] for name in names] == [1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("pred", "mask", "iou", "precision", "recall", "distance"),
    [
        (NOTHING, SQUARE, 0, math.nan, 0, math.sqrt(4**2 + 6**2)),
        (SQUARE, NOTHING, 0, 0, math.nan, math.sqrt(4**2 + 6**2)),
        (NOTHING, NOTHING, 1, math.nan, math.nan, 0),
    ],
)
def test_clean_metrics_of_empty_regions(pred, mask, iou, precision, recall, distance):
    found = clean_metrics(pred, mask)
    assert found["iou"] == found["dice"] == iou
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), nan_ok=True)
    assert found["hd95"] == found["assd"] == pytest.approx(distance)


def test_clean_mask_of_the_whole_image_has_no_specificity():
    full = np.ones((3, 3), dtype=bool)
    assert math.isnan(clean_metrics(full, full)["specificity"])


@pytest.mark.parametrize(
    ("pred", "mask", "message"),
    [
        (SQUARE[:, :5], SQUARE, r"\(4, 5\) and \(4, 6\)"),
        (SQUARE[None], SQUARE[None], r"\(1, 4, 6\)"),
        (SQUARE.astype(np.float32), SQUARE, "prediction must be bool, found float32"),
        (SQUARE, SQUARE.astype(np.uint8), "mask must be bool, found uint8"),
    ],
)
def test_clean_metrics_refuse(pred, mask, message):
    with pytest.raises(ValueError, match=message):
        clean_metrics(pred, mask)


@pytest.mark.parametrize("seed", range(5))
def test_clean_overlap_agrees_with_scikit_learn(seed):
    sk = pytest.importorskip("sklearn.metrics", reason="scikit-learn is a development package")
    prob, mask = blobs(seed)
    pred = prob >= 0.5
    found = clean_metrics(pred, mask)
    (tn, fp), (fn, tp) = sk.confusion_matrix(mask.ravel(), pred.ravel())
    truth, guess = mask.ravel(), pred.ravel()
    assert (found["tp"], found["fp"], found["fn"], found["tn"]) == (tp, fp, fn, tn)
    assert found["iou"] == pytest.approx(sk.jaccard_score(truth, guess))
    assert found["dice"] == pytest.approx(sk.f1_score(truth, guess))
    assert found["precision"] == pytest.approx(sk.precision_score(truth, guess))
    assert found["recall"] == pytest.approx(sk.recall_score(truth, guess))
    assert found["specificity"] == pytest.approx(sk.recall_score(truth, guess, pos_label=False))


@pytest.mark.parametrize("seed", range(5))
def test_clean_distances_agree_with_medpy(seed):
    medpy = pytest.importorskip("medpy.metric.binary", reason="MedPy is a development package")
    prob, mask = blobs(seed)
    pred = prob >= 0.5
    found = clean_metrics(pred, mask)
    # MedPy's hd95 puts the distances of both directions into one list, so that it only bounds ours.
    assert found["assd"] == pytest.approx(medpy.assd(pred, mask))
    assert medpy.hd95(pred, mask) <= found["hd95"] <= medpy.hd(pred, mask)


def test_clean_hd95_agrees_with_medpy_where_both_directions_are_alike():
    medpy = pytest.importorskip("medpy.metric.binary", reason="MedPy is a development package")
    # A single line against itself 3 pixels lower: every distance is 3 both ways, pooled or not.
    pred, mask = np.zeros((2, 20, 30), dtype=bool)
    pred[8], mask[11] = True, True
    assert clean_metrics(pred, mask)["hd95"] == pytest.approx(medpy.hd95(pred, mask)) == 3


@pytest.mark.parametrize("seed", range(5))
def test_clean_distances_agree_with_pairwise_distances(seed):
    prob, mask = blobs(seed)
    pred = prob >= 0.5

    def outline(region: np.ndarray) -> np.ndarray:
        ring = np.pad(region, 1)
        inner = ring[:-2, 1:-1] & ring[2:, 1:-1] & ring[1:-1, :-2] & ring[1:-1, 2:]
        return np.argwhere(region & ~inner)

    pairs = cdist(outline(pred), outline(mask))
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    found = clean_metrics(pred, mask)
    assert found["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found["assd"] == pytest.approx(np.concatenate([there, back]).mean())


# --- over the images ---------------------------------------------------------------------------------------


def test_bootstrap_interval_is_near_the_normal_approximation():
    values = np.random.default_rng(0).gamma(2.0, 5.0, size=4000)
    margin = 1.959964 * values.std(ddof=1) / math.sqrt(values.size)
    low, high = bootstrap_interval(values)
    # Of 9,999 resamples, the 2.5 % quantile strays by some 2 % of the margin.
    assert low == pytest.approx(values.mean() - margin, abs=0.08 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.08 * margin)


def test_bootstrap_interval_by_hand():
    # Resamples of (0, 1) have the mean 0 or 1 with probability 1/4 each: both lie within 95 %.
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    # Nine 0 and a 1: k ones in 10 draws are binomial (10, 0.1). P(k = 0) = 0.35 -> low 0;
    # P(k <= 2) = 0.930, P(k <= 3) = 0.987 -> the 97.5 % quantile is 3/10.
    assert bootstrap_interval(np.array([0.0] * 9 + [1.0])) == pytest.approx((0.0, 0.3))


def test_bootstrap_interval_depends_on_the_seed_alone():
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_bootstrap_interval_drops_nan():
    values = np.random.default_rng(2).normal(size=30)
    holed = np.insert(values, [0, 10, 30], np.nan)
    assert bootstrap_interval(holed) == bootstrap_interval(values)


@pytest.mark.parametrize("values", [[], [0.7], [np.nan, np.nan], [np.nan, 0.7]])
def test_bootstrap_interval_of_fewer_than_two_images_is_nan(values):
    assert bootstrap_interval(np.array(values)) == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_bootstrap_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval(np.full(7, 0.1)) == pytest.approx((0.1, 0.1))


def test_summarise_by_hand():
    rows = [
        {"iou": 0.0, "precision": math.nan, "hd": 1.0},
        {"iou": 1.0, "precision": math.nan, "hd": 5.0},
        {"iou": 0.2, "precision": math.nan, "hd": math.nan},
    ]
    found = summarise(rows)
    assert found["iou"]["mean"] == pytest.approx(0.4)
    assert found["iou"]["median"] == pytest.approx(0.2)
    assert found["iou"]["n"] == 3
    assert 0 <= found["iou"]["low"] < 0.4 < found["iou"]["high"] <= 1
    assert found["hd"] == {"mean": 3, "low": 1, "high": 5, "median": 3, "n": 2}
    undefined = dict.fromkeys(("mean", "low", "high", "median"), math.nan)
    assert found["precision"] == pytest.approx({**undefined, "n": 0}, nan_ok=True)


def test_summarise_passes_the_seed_on():
    rows = [{"iou": value, "tp": 1, "fp": 1, "fn": 1, "tn": 1} for value in np.random.default_rng(5).uniform(size=40)]
    values = np.array([row["iou"] for row in rows])
    found = summarise(rows, seed=9)["iou"]
    assert (found["low"], found["high"]) == bootstrap_interval(values, seed=9)
    assert summarise_clean(rows, seed=9)["per_image"]["iou"] == found


def test_summarise_takes_rows_of_the_authors_protocol():
    row = authors_metrics(certain(SHIFTED), SQUARE)
    found = summarise([row, row])
    assert list(found) == list(row)
    assert found["auc"] == pytest.approx({"mean": 0.7, "low": 0.7, "high": 0.7, "median": 0.7, "n": 2})


def test_summarise_clean_pools_pixels_apart_from_the_mean_over_images():
    # Image 1: TP 1, FP 0, FN 0. Image 2: TP 2, FP 1, FN 3. Image 3: nothing predicted, FN 2.
    # Pooled TP 3, FP 1, FN 5: IoU 3/9, Dice 6/12, precision 3/4, recall 3/8.
    # Means: IoU (1 + 2/6 + 0) / 3 = 4/9; precision over the two images that have one (1 + 2/3) / 2 = 5/6.
    rows = [
        clean_metrics(picture("#......."), picture("#.......")),
        clean_metrics(picture("###....."), picture("##..###.")),
        clean_metrics(picture("........"), picture("##......")),
    ]
    found = summarise_clean(rows)
    assert found["pooled"] == pytest.approx({"iou": 3 / 9, "dice": 1 / 2, "precision": 3 / 4, "recall": 3 / 8})
    assert found["per_image"]["iou"]["mean"] == pytest.approx(4 / 9)
    assert found["per_image"]["precision"]["mean"] == pytest.approx(5 / 6)
    assert found["per_image"]["precision"]["n"] == 2
    assert found["images"] == {"total": 3, "empty_prediction": 1}
    assert list(found["per_image"]) == ["iou", "dice", "precision", "recall", "specificity", "hd95", "assd"]


@pytest.mark.parametrize("summary", [summarise, summarise_clean])
def test_summary_of_no_rows_is_refused(summary):
    with pytest.raises(ValueError, match="no rows"):
        summary([])
