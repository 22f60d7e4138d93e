"""A sample: an image, its mask and what the mask shows. The one place for everything about files.

Every file is read with Pillow, as the release does, whose filters differ from torchvision's and OpenCV's.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"}

# Where the data can be had: the links of the release's README and the sets' papers.
WHERE = {
    "TN3K": "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation (section Datasets)",
    "TG3K": "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation (section Datasets)",
    "DDTI": "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation (section Datasets; "
    "the original: doi 10.1117/12.2073532)",
    "PHANTOM": "this repository: delete its folder, and -dataset PHANTOM makes it anew",
}


def mask_clean(values: np.ndarray) -> np.ndarray:
    """Foreground is > 127: what the annotators drew, whatever JPEG did to it. (H, W) uint8 -> bool."""
    return values > 127


def mask_authors(values: np.ndarray) -> np.ndarray:
    """The release's rule: divide by the maximum and truncate, so that only the maximum stays foreground.

    On TN3K's JPEG masks that loses 11.5 % of the foreground on average. (H, W) uint8 -> bool.
    """
    return (values == values.max()) & (values > 0)


MASK_RULES = {"clean": mask_clean, "authors": mask_authors}


@dataclass(frozen=True)
class Sample:
    """An image file and the file of its mask; `task` says what the mask shows, `source` which dataset it is from."""

    image: Path
    mask: Path
    task: str
    source: str

    @property
    def name(self) -> str:
        """Short name for tables and messages, e.g. test-image/0007.jpg."""
        return f"{self.image.parent.name}/{self.image.name}"

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(image (H, W, 3) uint8 RGB, raw mask (H, W) uint8), at native size.

        UserError where a file is unreadable or truncated, the mask is of another size than the image, or empty.
        """
        image = _decode(self.image, "RGB", self.source)
        mask = _decode(self.mask, "L", self.source)
        if image.shape[:2] != mask.shape:
            raise UserError(
                f"{self.mask}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image {self.image} "
                f"{image.shape[1]} x {image.shape[0]}; they must agree. {_again(self.source)}"
            )
        if not mask_clean(mask).any():
            raise UserError(
                f"{self.mask}: the mask is empty (largest value {mask.max()}; foreground is > 127), but every image "
                f"of {self.source} shows a {self.task}. {_again(self.source)}"
            )
        return image, mask


def read_image(path: Path, mode: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 RGB, or with mode L (H, W) grey. UserError for a file that is no whole image."""
    try:
        with Image.open(path) as file:
            return np.array(file.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path}: cannot be read as an image, expected a whole {path.suffix} file ({error})."
        ) from error


def _decode(path: Path, mode: str, source: str) -> np.ndarray:
    try:
        return read_image(path, mode)
    except UserError as error:
        raise UserError(f"{error} {_again(source)}") from error


def _again(source: str) -> str:
    return f"Get {source} again from {WHERE[source]}."


def list_samples(image_dir: Path, mask_dir: Path, task: str, source: str) -> list[Sample]:
    """The samples of two folders, image and mask paired by their number, in the order of the numbers.

    UserError where a folder is missing or empty, an image has no mask or a mask no image.
    """
    images, masks = _numbered_files(image_dir, source), _numbered_files(mask_dir, source)
    for files, others, what, other, folder in (
        (images, masks, "image", "mask", mask_dir),
        (masks, images, "mask", "image", image_dir),
    ):
        lonely = sorted(files.keys() - others.keys())
        if lonely:
            raise UserError(
                f"{files[lonely[0]]}: this {what} has no {other} in {folder}, where a file with the number "
                f"{lonely[0]} was expected ({len(lonely)} such {what}s). {_again(source)}"
            )
    return [Sample(images[number], masks[number], task, source) for number in sorted(images)]


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder by name; none where it holds none or is no folder."""
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


def _numbered_files(folder: Path, source: str) -> dict[int, Path]:
    """Image files of a folder by the number in their name."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; {source} was expected there. Get it from {WHERE[source]}, unpack it "
            f"as README.md shows, or say with -data_root where it lies. Without data, try -dataset PHANTOM."
        )
    files: dict[int, Path] = {}
    for path in list_images(folder):
        if not re.fullmatch(r"\d+", path.stem):
            raise UserError(f"{path}: expected a number for a name, such as 0012{path.suffix}. {_again(source)}")
        number = int(path.stem)
        if number in files:
            raise UserError(f"{path}: {files[number].name} beside it has the same number. Keep one of the two.")
        files[number] = path
    if not files:
        raise UserError(f"{folder}: the folder holds no images. {_again(source)}")
    return files


def read_split(path: Path, count: int, source: str) -> dict[str, list[int]]:
    """The JSON {"train": [...], "val": [...]} of indices into `count` samples sorted by number.

    UserError where it is missing, no such JSON, an index is out of range, or one is on both sides.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; it says which images are for training. {_again(source)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        split = {part: _indices(content[part]) for part in ("train", "val")}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f'{path}: expected {{"train": [indices], "val": [indices]}} ({error!r}). {_again(source)}'
        ) from error
    for part, indices in split.items():
        wrong = [index for index in indices if not 0 <= index < count]
        if wrong:
            raise UserError(
                f"{path}: index {wrong[0]} of {part!r} is out of range; {count} images were found, so that indices "
                f"go from 0 to {count - 1} ({len(wrong)} such). {_again(source)}"
            )
        if not indices:
            raise UserError(f"{path}: {part!r} is empty. {_again(source)}")
    both = sorted(set(split["train"]) & set(split["val"]))
    if both:
        raise UserError(f"{path}: index {both[0]} is in both 'train' and 'val' ({len(both)} such). {_again(source)}")
    return split


def _indices(values: object) -> list[int]:
    """`values` if it is a list of whole numbers, each once; ValueError otherwise."""
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("not a list of whole numbers")
    if len(set(values)) != len(values):
        raise ValueError("a number occurs twice")
    return values
