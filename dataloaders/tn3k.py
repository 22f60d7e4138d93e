"""TN3K: thyroid nodule images with nodule masks, five folds and a test set (Gong et al., ISBI 2021).

tn3k/trainval-image/0000.jpg ...  trainval-mask/  test-image/  test-mask/  tn3k-trainval-fold{0..4}.json
"""

from pathlib import Path

from .samples import Sample, list_samples, read_split


def trainval(root: Path, fold: int, source: str = "TN3K") -> tuple[list[Sample], list[Sample]]:
    """(training, validation) samples of a fold; `root` is the folder tn3k."""
    samples = list_samples(root / "trainval-image", root / "trainval-mask", "nodule", source)
    split = read_split(root / f"tn3k-trainval-fold{fold}.json", len(samples), source)
    return [samples[i] for i in split["train"]], [samples[i] for i in split["val"]]


def evaluation(root: Path, source: str = "TN3K") -> list[Sample]:
    """The samples of the test set; `root` is the folder tn3k."""
    return list_samples(root / "test-image", root / "test-mask", "nodule", source)
