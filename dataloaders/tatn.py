"""TATN: nodule images paired with gland images, for the two-task networks (Gong et al., ISBI 2021)."""

from .samples import Sample


def pair(nodules: list[Sample], glands: list[Sample]) -> list[tuple[Sample, Sample]]:
    """Nodule image i goes with gland image floor(1.4 i), modulo their number; the pairing is fixed.

    1.4 is the release's figure: 2,303 nodule images reach over TG3K's 3,226 gland images.
    """
    # In floating point, as the release computes it: 1.4 * 45 falls just below 63.
    return [(nodule, glands[int(1.4 * i) % len(glands)]) for i, nodule in enumerate(nodules)]
