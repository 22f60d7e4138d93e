"""Pictures of results: contours over the ultrasound image, and grids of them.

Colours are from the Okabe-Ito palette, which colour-blind readers can tell apart.
"""

from collections.abc import Sequence

import cv2
import numpy as np

TRUE = (86, 180, 233)
PREDICTED = (230, 159, 0)
GLAND = (204, 121, 167)

Outline = tuple[np.ndarray, tuple[int, int, int]]


def draw_contours(image: np.ndarray, outlines: Sequence[Outline], thickness: int = 1) -> np.ndarray:
    """Contours of (mask (H, W) bool, RGB colour) pairs, the last on top, over a copy of `image` (H, W, 3) uint8."""
    drawn = np.ascontiguousarray(image)
    drawn = drawn.copy() if drawn is image else drawn
    for mask, colour in outlines:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, colour, thickness, cv2.LINE_AA)
    return drawn


def overlay(
    image: np.ndarray, true: np.ndarray, predicted: np.ndarray, gland: np.ndarray | None, caption: str
) -> np.ndarray:
    """An image for a person to judge: all contours, and below them a legend and the caption.

    image: (H, W, 3) uint8 RGB; masks: (H, W) bool. Enlarged by a whole factor to about 400 pixels a side.
    """
    factor = max(1, round(400 / min(image.shape[:2])))
    height, width = (side * factor for side in image.shape[:2])
    enlarged = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_NEAREST)
    legend = [("true", true, TRUE), ("predicted", predicted, PREDICTED)]
    if gland is not None:
        legend.insert(0, ("gland, predicted", gland, GLAND))
    outlines = [
        (cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST), colour)
        for _, mask, colour in legend
    ]
    drawn = draw_contours(enlarged, outlines, thickness=max(1, round(min(height, width) / 250)))
    return np.vstack([drawn, _legend_bar(width, [(text, colour) for text, _, colour in legend], caption)])


def _legend_bar(width: int, entries: Sequence[tuple[str, tuple[int, int, int]]], caption: str) -> np.ndarray:
    """A dark bar (48, width, 3): the caption over the names of the contours in their colours."""
    bar = np.full((48, width, 3), 24, np.uint8)
    cv2.putText(bar, caption, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    x = 8
    for text, colour in entries:
        cv2.putText(bar, text, (x, 39), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
        x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0] + 16
    return bar


def grid(images: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Images of one size (H, W, 3) in rows of `columns`, the last row filled up with black."""
    blank = np.zeros_like(images[0])
    padded = [*images, *[blank] * (-len(images) % columns)]
    rows = [np.hstack(padded[start : start + columns]) for start in range(0, len(padded), columns)]
    return np.vstack(rows)
