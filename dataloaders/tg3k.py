"""TG3K: frames of thyroid ultrasound videos with gland masks (Gong et al., ISBI 2021).

tg3k/thyroid-image/0000.jpg ...  thyroid-mask/  tg3k-trainval.json
"""

from pathlib import Path

from .samples import Sample, list_samples, read_split


def trainval(root: Path, source: str = "TG3K") -> tuple[list[Sample], list[Sample]]:
    """(training, validation) samples; `root` is the folder tg3k."""
    samples = list_samples(root / "thyroid-image", root / "thyroid-mask", "gland", source)
    split = read_split(root / "tg3k-trainval.json", len(samples), source)
    return [samples[i] for i in split["train"]], [samples[i] for i in split["val"]]
