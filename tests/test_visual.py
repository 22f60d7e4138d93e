"""Pictures: contours where the masks end, overlays a person can read, grids without gaps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion
from torch import Tensor, nn

from dataloaders import training_samples
from dataloaders.datasets import Reader, ValidationSet
from train import validation_grid
from utils.device import choose_compute
from utils.visual import GLAND, PREDICTED, TRUE, draw_contours, grid, overlay

GREY = 60


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """A mask (H, W) of rows top to bottom and columns left to right, the ends left out."""
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def painted(image: np.ndarray, colour: tuple[int, int, int], tolerance: int = 0) -> np.ndarray:
    """Where `image` has this colour, each channel within `tolerance`."""
    return (np.abs(image.astype(int) - colour) <= tolerance).all(axis=2)


def outlined(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a line one pixel thick of this colour is; smoothing lets a fifth of the image shine through."""
    return painted(image, colour, tolerance=50)


def edge(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels with a neighbour outside it."""
    return mask & ~binary_erosion(mask)


def test_contour_is_the_edge_of_the_mask_in_its_colour() -> None:
    mask = rectangle(30, 40, 5, 8, 20, 33)
    drawn = draw_contours(grey(30, 40), [(mask, TRUE)])
    assert outlined(drawn, TRUE)[edge(mask)].all()
    # Smoothing may tint the pixels beside the line, no others.
    beside = binary_dilation(edge(mask), np.ones((3, 3)))
    assert (drawn[~beside] == GREY).all()
    assert drawn.shape == (30, 40, 3)
    assert drawn.dtype == np.uint8


def test_image_drawn_on_stays_as_it_was() -> None:
    mask = rectangle(20, 20, 5, 5, 15, 15)
    for image in (grey(20, 20), grey(20, 20)[:, ::-1], np.broadcast_to(np.uint8(GREY), (20, 20, 3))):
        before = image.copy()
        mask_before = mask.copy()
        drawn = draw_contours(image, [(mask, TRUE)])
        assert outlined(drawn, TRUE).any()
        assert (image == before).all()
        assert (mask == mask_before).all()


def test_every_part_and_hole_is_outlined() -> None:
    mask = rectangle(60, 60, 5, 5, 20, 20) | rectangle(60, 60, 28, 28, 56, 56)
    mask[38:46, 38:46] = False
    drawn = outlined(draw_contours(grey(60, 60), [(mask, TRUE)]), TRUE)
    assert drawn[:24, :24].any()
    assert drawn[28, 30:54].all()
    assert drawn[37:47, 37:47].any()


def test_last_outline_is_on_top() -> None:
    mask = rectangle(20, 20, 5, 5, 15, 15)
    drawn = draw_contours(grey(20, 20), [(mask, TRUE), (mask, PREDICTED)])
    assert outlined(drawn, PREDICTED)[edge(mask)].all()
    assert not outlined(drawn, TRUE).any()


def test_nothing_to_draw() -> None:
    drawn = draw_contours(grey(20, 20), [(np.zeros((20, 20), bool), TRUE)])
    assert (drawn == GREY).all()
    assert (draw_contours(grey(20, 20), []) == GREY).all()


def test_whole_image_as_mask() -> None:
    drawn = draw_contours(grey(20, 20), [(np.ones((20, 20), bool), TRUE)])
    assert outlined(drawn, TRUE)[edge(np.ones((20, 20), bool))].all()


@pytest.mark.parametrize(
    ("size", "factor"), [((48, 64), 8), ((399, 700), 1), ((400, 500), 1), ((600, 450), 1), ((200, 133), 3)]
)
def test_overlay_is_large_enough_with_a_legend_below(size: tuple[int, int], factor: int) -> None:
    height, width = size
    mask = rectangle(height, width, height // 4, width // 4, height // 2, width // 2)
    drawn = overlay(grey(height, width), mask, mask, None, "0007.jpg")
    assert drawn.shape == (height * factor + 48, width * factor, 3)
    assert min(drawn.shape[0] - 48, drawn.shape[1]) >= 380
    bar = drawn[-48:]
    assert painted(bar, TRUE).any()
    assert painted(bar, PREDICTED).any()
    assert not painted(bar, GLAND).any()
    assert (bar > 200).all(axis=2).any()
    # Off the contours the picture is the image.
    assert (drawn[: height * factor // 8] == GREY).all()


def test_overlay_contours_lie_where_the_masks_end() -> None:
    true, predicted = rectangle(50, 60, 10, 10, 20, 20), rectangle(50, 60, 30, 10, 40, 20)
    gland = rectangle(50, 60, 5, 40, 45, 55)
    drawn = overlay(grey(50, 60), true, predicted, gland, "")[:-48]
    # Enlarged eightfold: a mask's rows 10 to 19 become 80 to 159.
    for mask, colour in ((true, TRUE), (predicted, PREDICTED), (gland, GLAND)):
        large = mask.repeat(8, axis=0).repeat(8, axis=1)
        found = painted(drawn, colour)
        assert found[edge(large)].all()
        assert not (found & ~binary_dilation(edge(large), np.ones((5, 5)))).any()


def test_overlay_of_a_gland_names_it() -> None:
    image, nothing = grey(48, 64), np.zeros((48, 64), bool)
    bar = overlay(image, nothing, nothing, nothing, "")[-48:]
    places = {colour: np.argwhere(painted(bar, colour))[:, 1] for colour in (GLAND, TRUE, PREDICTED)}
    assert places[GLAND].max() < places[TRUE].min() < places[TRUE].max() < places[PREDICTED].min()
    assert (image == GREY).all()


def test_grid_fills_its_last_row() -> None:
    images = [np.full((4, 6, 3), 10 * (number + 1), np.uint8) for number in range(5)]
    picture = grid(images, columns=3)
    assert picture.shape == (8, 18, 3)
    assert picture[::4, ::6, 0].tolist() == [[10, 20, 30], [40, 50, 0]]
    assert (picture[:4, 6:12] == 20).all()
    assert (picture[4:, 12:] == 0).all()
    assert grid(images[:4]).shape == (4, 24, 3)
    assert grid(images[:1]).shape == (4, 24, 3)
    assert grid(images).shape == (8, 24, 3)


class Corner(nn.Module):
    """Predicts the upper left quarter of each image, and remembers how often it was called and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, bool]] = []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.seen.append((len(image), self.training))
        logits = torch.full((len(image), 1, *image.shape[2:]), -1.0)
        logits[..., : image.shape[2] // 2, : image.shape[3] // 2] = 0.0
        return {"nodule": logits, "gland": -logits}


@pytest.mark.parametrize(("count", "chosen"), [(2, [0, 1]), (8, list(range(8))), (10, [0, 1, 2, 3, 5, 6, 7, 9])])
def test_validation_grid_shows_truth_and_prediction(count: int, chosen: list[int], data_root: Path) -> None:
    items, _ = training_samples("TN3K", ("nodule",), data_root, 0)
    samples = [sample for (sample,) in items]
    samples = (samples + samples)[:count]
    data, net = ValidationSet(samples, Reader(64)), Corner()
    picture = validation_grid(net, data, choose_compute("cpu", "fp32"))
    assert net.seen == [(len(chosen), False)]
    assert picture.shape == (64 * -(-len(chosen) // 4), 64 * 4, 3)
    corner = rectangle(64, 64, 0, 0, 32, 32)
    for place, index in enumerate(chosen):
        row, column = divmod(place, 4)
        panel = picture[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
        prepared = data.reader(samples[index])
        assert outlined(panel, PREDICTED)[edge(corner)].all()
        inside = edge(prepared.mask) & ~binary_dilation(edge(corner), iterations=2)
        assert outlined(panel, TRUE)[inside].mean() > 0.5
        away = ~binary_dilation(edge(corner) | edge(prepared.mask), iterations=2)
        assert (panel[away] == prepared.image[away]).all()
    if len(chosen) % 4:
        assert (picture[-64:, 64 * (len(chosen) % 4) :] == 0).all()
