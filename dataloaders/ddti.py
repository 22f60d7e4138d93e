"""DDTI: 637 crops of thyroid nodule images with masks, here for testing only (Pedraza et al., 2015).

DDTI/image/1.PNG ...  mask/
"""

from pathlib import Path

from .samples import Sample, list_samples


def evaluation(root: Path) -> list[Sample]:
    """All samples; `root` is the folder DDTI."""
    return list_samples(root / "image", root / "mask", "nodule", "DDTI")
