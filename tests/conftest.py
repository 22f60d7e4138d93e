"""Helpers for all tests: a tiny data set in the layout of the real ones, the scripts' command line, shared/."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Small tensors gain little from threads, and lose much where other programs compete for the cores.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
# Real images and reference values; they lie beside the repository, never in it.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> Path:
    """A path under shared/; the test that asks is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def run_script(
    script: str, *args: object, cwd: Path | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run train.py, eval.py, ... of the repository as a user does, from the repository root unless `cwd` says else."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def write_image(path: Path, values: np.ndarray) -> Path:
    """Write (H, W) or (H, W, 3) uint8, or a bool mask as 0 and 255, in the format of the suffix; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values.astype(np.uint8) * 255 if values.dtype == bool else values
    Image.fromarray(values).save(path, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))
    return path


def ellipse(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random ellipse (H, W), bool, wholly inside."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.4, 0.6, 2) * size
    ry, rx = rng.uniform(0.15, 0.35, 2) * size
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1


def make_pairs(
    image_dir: Path, mask_dir: Path, count: int, suffix: str, size: tuple[int, int], digits: int = 4, first: int = 0
) -> None:
    """`count` images of a dark ellipse in noise, and their masks, named by number."""
    for number in range(first, first + count):
        rng = np.random.default_rng([number, *size])
        mask = ellipse(rng, size)
        image = np.clip(rng.normal(np.where(mask, 70, 150), 20), 0, 255).astype(np.uint8)
        write_image(image_dir / f"{number:0{digits}d}{suffix}", image)
        write_image(mask_dir / f"{number:0{digits}d}{suffix}", mask)


def make_data(
    root: Path,
    trainval: int = 10,
    test: int = 3,
    gland: int = 14,
    size: tuple[int, int] = (48, 64),
    ddti: int = 0,
) -> Path:
    """TN3K, TG3K and, with `ddti` > 0, DDTI in miniature under `root`, for -data_root; answers `root`.

    Fold k validates on every index i with i % 5 == k. TN3K and TG3K are JPEG, DDTI is PNG, as the real ones are.
    """
    tn3k, tg3k = root / "tn3k", root / "tg3k"
    make_pairs(tn3k / "trainval-image", tn3k / "trainval-mask", trainval, ".jpg", size)
    make_pairs(tn3k / "test-image", tn3k / "test-mask", test, ".jpg", size)
    for fold in range(5):
        split = {"train": [i for i in range(trainval) if i % 5 != fold], "val": list(range(fold, trainval, 5))}
        (tn3k / f"tn3k-trainval-fold{fold}.json").write_text(json.dumps(split))
    make_pairs(tg3k / "thyroid-image", tg3k / "thyroid-mask", gland, ".jpg", size)
    cut = gland * 9 // 10
    split = {"train": list(range(cut)), "val": list(range(cut, gland))}
    (tg3k / "tg3k-trainval.json").write_text(json.dumps(split))
    if ddti:
        make_pairs(root / "DDTI/image", root / "DDTI/mask", ddti, ".PNG", size, digits=1, first=1)
    return root


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound miniature of all data sets, to be read only."""
    return make_data(tmp_path_factory.mktemp("data"), ddti=3)


@pytest.fixture
def own_data(data_root: Path, tmp_path: Path) -> Path:
    """A copy of `data_root` for one test to damage."""
    return Path(shutil.copytree(data_root, tmp_path / "data"))
