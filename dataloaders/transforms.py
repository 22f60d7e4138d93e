"""From a sample at native size to what a network takes: resize, flip, normalise."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# ImageNet's, as in the release.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, Pillow's bilinear filter."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) bool -> (size, size) bool, Pillow's nearest neighbour."""
    values = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(values).astype(bool)


def normalise(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32: /255, minus ImageNet's mean, over its standard deviation."""
    values = (image.astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def denormalise(image: Tensor) -> np.ndarray:
    """The inverse of normalise: (3, H, W) -> (H, W, 3) uint8."""
    values = image.cpu().numpy().transpose(1, 2, 0) * STD + MEAN
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def flip(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mirror image and mask together, left to right, with probability 0.5."""
    if rng.random() < 0.5:
        return image[:, ::-1], mask[:, ::-1]
    return image, mask
