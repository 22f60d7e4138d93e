"""PHANTOM: synthetic transverse ultrasound of the thyroid, on disk in the layout of TN3K and TG3K.

An image is made in three steps: anatomy (where each tissue of the neck lies, in millimetres), medium (what
each tissue does to sound) and acquisition (how a linear array shows it: ultrasound.py). The medium also holds
look-alikes of nodules outside the gland, which only the context of the gland tells apart from nodules.

Outlines are fields: the depth under the outline of a thing in mm, positive inside it and negative outside.
The echogenicities are set by eye after clinical images; for the other numbers see ultrasound.py.
"""

import json
import math
import multiprocessing
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.interpolate import BSpline
from tqdm import tqdm

from .ultrasound import Array, Medium, Scanner, Tissue, envelope, log_compress

FORMAT = "thyroid ultrasound phantom"
VERSION = 1
SPLITS = ("trainval", "test", "gland")
FOLDS = 5
SMALLEST = 0.01  # of the image, the area of a nodule
FAR = -99.0  # mm: outline of a thing that is nowhere near

GLAND = Tissue(0, 0.55, 1.63)
CONNECTIVE = Tissue(-3, 0.65, 1.60)
SKIN = Tissue(5, 0.9, 1.66)
FAT = Tissue(-5, 0.5, 1.42)
FASCIA = Tissue(4, 0.8, 1.70)
MUSCLE = Tissue(-9, 0.75, 1.67)
BLOOD = Tissue(-27, 0.18, 1.62)
VESSEL_WALL = Tissue(2, 0.6, 1.68)
FLUID = Tissue(-30, 0.03, 1.54)
CARTILAGE = Tissue(-12, 1.0, 1.75)
MUCOSA = Tissue(5, 0.7, 1.68)
CALCIFICATION = Tissue(12, 9, 3.0)
MICROCALCIFICATION = Tissue(12, 1, 1.9)  # too small to cast a shadow
BONE = Tissue(12, 12, 5.0)
# No sound passes air; what is seen in the trachea are reverberations that die away within about a centimetre.
AIR = Tissue(9, 4.5, 0.0004)


class NoduleKind(NamedTuple):
    echo: tuple[float, float]  # of the solid part: dB relative to the gland
    share: float  # how often it occurs
    roughness: float  # at most: how far the outline departs from an ellipse, as a fraction of the radius


NODULE_KINDS = {
    "hypoechoic": NoduleKind((-14, -7), 0.5, 0.15),
    "isoechoic": NoduleKind((-2, 1.5), 0.12, 0.08),
    "hyperechoic": NoduleKind((6, 10), 0.08, 0.08),
    "mixed": NoduleKind((-7, 1), 0.12, 0.1),
    "spongiform": NoduleKind((-3, 2), 0.06, 0.08),
    "cystic": NoduleKind((-6, 0), 0.12, 0.04),
}
CALCIFICATIONS = {"microcalcifications": 0.6, "macrocalcification": 0.25, "rim calcification": 0.15}  # and shares
LOOKALIKES = {"lymph node": 0.2, "bare lymph node": 0.6, "muscle bundle": 0.1, "vessel": 0.1}  # and shares


@dataclass(frozen=True)
class Scan:
    """One synthetic frame. `lookalike` marks what resembles a nodule outside the gland."""

    image: Array  # (H, W) uint8
    gland: Array  # (H, W) bool, nodules included
    nodule: Array  # (H, W) bool
    lookalike: Array  # (H, W) bool
    nodules: list[str]  # kind and features of each nodule
    lookalikes: list[str]  # kind of each look-alike placed besides the vessels


def _splines(count: int, step: float) -> Array:
    """Cubic B-splines every `step` pixels at each of `count` pixels: a sparse (count, splines) matrix."""
    position = np.arange(count) / step
    return BSpline.design_matrix(position, np.arange(-3, int(position[-1]) + 5), 3).astype(np.float32)


def _rotated(x: Array, z: Array, angle: float) -> tuple[Array, Array]:
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + z * sin, z * cos - x * sin


@dataclass(frozen=True)
class View:
    """The plane that is scanned: where its pixels lie in the neck, in mm."""

    x: Array  # (H, W) lateral position, 0 in the midline of the neck, deformed
    z: Array  # (H, W) depth below the skin, deformed
    depth: Array  # (H, W) depth below the probe
    px: float  # mm per pixel
    rng: np.random.Generator

    @classmethod
    def random(cls, rng: np.random.Generator) -> "View":
        height = int(rng.integers(256, 361))
        width = int(np.clip(height * rng.uniform(0.95, 1.4), 256, 360))
        px = rng.uniform(32, 46) / height
        depth, across = (np.indices((height, width), np.float32) + 0.5) * px
        flat = cls(across, depth, depth, px, rng)
        probe = rng.uniform(-6, 6) if rng.random() < 0.2 else float(rng.choice([-1, 1])) * rng.uniform(9, 23)
        x, z = _rotated(across - width / 2 * px, depth - 15, rng.normal(0, 0.07))
        return cls(x + probe + 1.2 * flat.noise(16), z + 15 + 1.2 * flat.noise(16), depth, px, rng)

    def noise(self, length_z: float, length_x: float | None = None) -> Array:
        """Smooth random field of unit variance that changes over these lengths in mm."""
        height, width = self.depth.shape
        rows, columns = _splines(height, length_z / self.px), _splines(width, (length_x or length_z) / self.px)
        coarse = self.rng.standard_normal((columns.shape[1], rows.shape[1]), np.float32)
        return 315 / 151 * (rows @ (columns @ coarse).T)  # 151/315: the mean sum of squares of the splines

    def ellipse(self, x: float, z: float, rx: float, rz: float, tilt: float = 0, paired: bool = False) -> Array:
        """An ellipse as the view deforms it; with paired, also its mirror image on the other side of the neck."""
        u, v = _rotated((np.abs(self.x) if paired else self.x) - x, self.z - z, tilt)
        return (1 - np.sqrt((u / rx) ** 2 + (v / rz) ** 2)) * min(rx, rz)


# -------------------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Neck:
    """Outlines of the organs."""

    surface: Array  # below the subcutaneous fat
    trachea: Array
    gland: Array
    vessels: Array  # carotid arteries and jugular veins
    oesophagus: Array
    muscles: Array  # sternomastoid and longus colli; the strap muscles are layers under the surface
    bone: Array


def random_neck(view: View) -> Neck:
    """Organs of a random person; sizes in mm after textbook transverse views at the level of the isthmus."""
    uniform, pair = view.rng.uniform, partial(view.ellipse, paired=True)
    muscle_z, trachea_r = uniform(3, 7), uniform(7.5, 10)
    trachea_z = muscle_z + uniform(6, 10) + trachea_r
    trachea = view.ellipse(0, trachea_z, trachea_r * uniform(1, 1.15), trachea_r)
    isthmus = np.where(view.z < trachea_z - 0.2 * trachea_r, trachea + uniform(2, 5), FAR)

    lobe_rx, lobe_rz = uniform(6.5, 11), uniform(6.5, 11)
    lobe_x, lobe_z = trachea_r + 0.72 * lobe_rx, trachea_z - uniform(1, 5)
    lobe = pair(lobe_x, lobe_z, lobe_rx, lobe_rz, uniform(-0.1, 0.5))
    artery_x, artery_z = lobe_x + 0.85 * lobe_rx + uniform(2.5, 4.5), lobe_z + uniform(0, 5)
    artery_r = uniform(2.6, 3.9)
    carotid = pair(artery_x, artery_z, artery_r, artery_r)
    vein_rx, vein_rz = uniform(2.5, 6), uniform(1.5, 4)
    vein_x = artery_x + artery_r + vein_rx * uniform(0.5, 1)
    vein_z = artery_z - artery_r - vein_rz * uniform(0.3, 0.9)
    jugular = pair(vein_x, vein_z, vein_rx, vein_rz, uniform(-0.4, 0.4))
    mastoid_x, mastoid_rz = lobe_x + uniform(10, 16), uniform(3.5, 6)
    sternomastoid = pair(mastoid_x, muscle_z + mastoid_rz, uniform(11, 15), mastoid_rz, uniform(0, 0.25))
    longus_z = lobe_z + lobe_rz + uniform(3, 5)
    longus = pair(uniform(10, 15), longus_z, uniform(6, 9), uniform(2.8, 4.5))
    bone = pair(uniform(10, 18), longus_z + 12, uniform(10, 14), uniform(7, 9))
    gullet_x, gullet_z = trachea_r + uniform(0, 3), trachea_z + 0.8 * trachea_r
    gullet = view.ellipse(gullet_x, gullet_z, uniform(3.5, 5.5), uniform(2.5, 3.8))
    oesophagus = np.minimum(gullet, -0.3 - trachea)

    surface = view.depth - muscle_z + 0.5 * view.noise(8)
    vessels = np.maximum(carotid, jugular)
    others = [trachea + 0.3, vessels + 1, oesophagus + 0.5, longus + 0.5, 2.5 - surface]
    gland = np.minimum(np.maximum(lobe, isthmus) + 0.25 * view.noise(4), -np.maximum.reduce(others))
    muscles = np.maximum(sternomastoid, longus) + 0.25 * view.noise(4)
    return Neck(surface, trachea, gland, vessels, oesophagus, muscles, bone)


def paint_neck(medium: Medium, view: View, neck: Neck, gland: Array) -> None:
    """Fill the organs with tissue, from the background up."""
    uniform = view.rng.uniform
    fibres = 4 * view.noise(0.35, 4)
    medium.echo[:] += 3 * view.noise(0.7, 3) + uniform(-3, 2)
    strap = uniform(3, 6.5)
    medium.fill((neck.surface > 0) & (neck.surface < strap), MUSCLE, fibres)
    for fascia in (0, strap * uniform(0.4, 0.6), strap):
        medium.fill(np.abs(neck.surface - fascia) < 0.22, FASCIA, 3 * view.noise(3))
    medium.fill((neck.muscles > -0.3) & (neck.surface > 0), FASCIA, 5 * view.noise(2.5))
    medium.fill((neck.muscles > 0) & (neck.surface > 0), MUSCLE, fibres + uniform(-2, 2))
    medium.fill(neck.bone > 0, BONE)

    medium.fill(neck.surface < 0, FAT, 3 * view.noise(1.5, 3) + 9 * (view.noise(0.5, 5) > 1.3))
    medium.fill(view.depth < uniform(0.8, 1.8), SKIN)
    medium.fill((gland > -0.3) & (gland < 0), FASCIA, 5 * view.noise(2))
    patchiness = uniform(2, 4) if view.rng.random() < 0.25 else uniform(0.3, 1.2)  # thyroiditis is patchy
    medium.fill(gland > 0, GLAND, patchiness * view.noise(2.5) + uniform(-1, 1))

    medium.fill(neck.trachea > 0, CARTILAGE)
    medium.fill(neck.trachea > 1.3, MUCOSA)
    medium.fill(neck.trachea > 1.7, AIR, 5 * np.cos(2 * np.pi * neck.trachea / uniform(0.9, 1.6)))
    medium.fill(neck.vessels > -0.4, VESSEL_WALL, 3 * view.noise(2))
    medium.fill(neck.vessels > 0, BLOOD)
    medium.fill(neck.oesophagus > 0, MUSCLE)
    medium.fill(neck.oesophagus > 1.4, MUCOSA, 4 * view.noise(0.5))


# ---------------------------------------------------------------------------------- nodules and look-alikes


def _draw(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def random_spot(view: View, room: Array, clearance: float) -> tuple[float, float]:
    """A random position (x, z) in mm within the room, this far (mm) from its border where it is so wide."""
    z, x = (np.minimum(np.arange(count), np.arange(count)[::-1]) * view.px for count in room.shape)
    room = np.minimum(room, np.minimum(z[:, None], x))  # the edge of the image is a border, too
    spot = view.rng.choice(np.flatnonzero(room >= min(clearance, 0.9 * room.max())))
    return float(view.x.flat[spot]), float(view.z.flat[spot])


def main_parts(outline: Array, px: float, fraction: float = 1) -> Array:
    """The connected parts with at least this fraction of the area of the largest; corners and threads smoothed."""
    outline = ndimage.gaussian_filter(np.maximum(outline, -3), 0.5 / px, mode="nearest", truncate=3)
    labels, _ = ndimage.label(outline > -0.3)
    areas = np.bincount(labels.flat)
    kept = areas >= fraction * areas[1:].max(initial=0)
    kept[0] = True  # the background
    return np.where(kept[labels], outline, FAR)


def random_lump(view: View, room: Array, bounds: Array, area: float, clearance: float, roughness: float) -> Array:
    """Outline of a roundish body of this area (mm^2) or of what the bounds leave of it.

    Its centre keeps clearance * radius from the border of the room; roughness is a fraction of the radius.
    """
    radius, elongation = math.sqrt(area / math.pi), math.sqrt(view.rng.uniform(0.85, 1.7))
    x, z = random_spot(view, room, clearance * radius)
    lump = view.ellipse(x, z, radius * elongation, radius / elongation, view.rng.normal(0, 0.3))
    lump += roughness * radius * view.noise(0.6 * radius)
    return np.minimum(main_parts(np.minimum(lump, bounds), view.px), bounds)


def paint_nodule(medium: Medium, view: View, margin: Array, kind: str, in_lymph_node: bool = False) -> str:
    """Fill the outline with a nodule of this kind and random features; returns both in words."""
    rng = view.rng
    echo = rng.uniform(*NODULE_KINDS[kind].echo)
    solid = Tissue(echo, rng.uniform(0.4, 0.75), rng.uniform(1.61, 1.65))
    inside = np.clip(margin / rng.uniform(0.05, 0.5), 0, 1)
    features = [kind]
    # A solid part as bright as the gland shows by its halo only.
    if kind not in ("hypoechoic", "cystic") and (abs(echo) < 3 or rng.random() < 0.4):
        features.append("halo")
        medium.fill(np.abs(margin) < rng.uniform(0.45, 0.7), Tissue(rng.uniform(-16, -11), 0.6, 1.63))
        inside = margin > 0.3
    medium.fill(inside, solid, rng.uniform(0.5, 2) * view.noise(1.5))
    if kind == "cystic":
        medium.fill(margin > 0.4, FLUID)
    elif kind == "mixed":
        medium.fill((margin > 0.6) & (view.noise(0.5 * margin.max()) > rng.uniform(-0.6, 0.5)), FLUID)
    elif kind == "spongiform":
        medium.fill((margin > 0.4) & (view.noise(0.8) > 0.5), FLUID._replace(echo=-16))
    elif rng.random() < 0.45:
        features.append("microcalcifications" if in_lymph_node else _draw(rng, CALCIFICATIONS))
        calcify(medium, view, margin, features[-1])
    return " + ".join(features)


def calcify(medium: Medium, view: View, margin: Array, feature: str) -> None:
    """Add calcifications; those thick enough to stop the sound cast a shadow."""
    rng = view.rng
    core = margin - 0.3 * margin.max()
    if feature == "microcalcifications":
        dots = np.zeros(core.shape, bool)
        dots.flat[rng.choice(np.flatnonzero(core > 0), rng.integers(4, 16))] = True
        medium.fill(ndimage.binary_dilation(dots, np.ones((2, 2))), MICROCALCIFICATION)
    elif feature == "macrocalcification":
        x, z = random_spot(view, core, 1.5)
        medium.fill(view.ellipse(x, z, rng.uniform(1, 2.2), rng.uniform(0.6, 1.1)) > 0, CALCIFICATION)
    else:
        medium.fill((np.abs(margin - 0.3) < 0.3) & (view.noise(4) > -0.5), CALCIFICATION._replace(attenuation=5))


def paint_lookalike(medium: Medium, view: View, margin: Array, kind: str) -> None:
    """Fill the outline with a structure that resembles a nodule."""
    rng = view.rng
    if kind == "vessel":
        medium.fill(margin > -0.3, VESSEL_WALL)
        medium.fill(margin > 0, BLOOD)
    elif kind == "muscle bundle":
        medium.fill(margin > -0.3, FASCIA)
        medium.fill(margin > 0, MUSCLE, 3 * view.noise(0.4, 3))
    else:  # without a hilum, a node looks like a nodule
        paint_nodule(medium, view, margin, "hypoechoic" if rng.random() < 0.9 else "mixed", True)
        if kind == "lymph node":
            hilum = margin > rng.uniform(0.5, 0.7) * margin.max()
            medium.fill(hilum, Tissue(rng.uniform(1, 6), 0.6, 1.6), 3 * view.noise(0.6, 1.5))


def random_areas(view: View, count: int) -> Array:
    """Areas in mm^2: log-normal about 5 % of the image, at most 20 %; smaller when several."""
    fraction = np.exp(view.rng.normal(np.log(0.05), 0.6, count)) / max(1, count) ** 0.5
    return np.clip(fraction, 1.3 * SMALLEST, 0.2) * view.depth.size * view.px**2


def shadowed(*organs: Array) -> Array:
    """The organs and all that lies below them in the image, where no sound gets."""
    return np.maximum.accumulate(np.maximum.reduce(organs), axis=0)


def place_nodules(view: View, neck: Neck, kinds: Sequence[str]) -> tuple[list[Array], Array]:
    """Outlines of these nodules, as far as there is room, and of the gland, which large ones distend."""
    barrier = np.maximum.reduce([shadowed(neck.trachea) + 0.5, neck.vessels + 0.7, 1 - neck.surface])
    gland = np.minimum(main_parts(np.minimum(neck.gland, -barrier), view.px, 0.15), -barrier)
    lumps: list[Array] = []
    for kind, area in zip(kinds, random_areas(view, len(kinds)), strict=True):
        room = np.minimum(gland, -barrier)
        if room.max() <= 0:
            break
        roughness = view.rng.uniform(0.02, NODULE_KINDS[kind].roughness)
        lump = random_lump(view, room, -barrier, area, 0.6, roughness)
        gland = np.maximum(gland, np.minimum(lump + 0.7, 0.2 - barrier))
        barrier = np.maximum(barrier, lump + 0.8)
        lumps.append(lump)
    return lumps, gland


def add_lookalikes(medium: Medium, view: View, neck: Neck, gland: Array) -> tuple[list[str], Array]:
    """Paint two to four look-alikes, as there is room; returns their kinds, and where they and similar organs are."""
    rng = view.rng
    lookalike = (neck.vessels > 0) | (neck.oesophagus > 0)
    shadow = shadowed(neck.trachea, neck.bone)
    organs = np.maximum.reduce([shadow, neck.vessels, neck.oesophagus, gland])
    barrier = np.maximum(organs + 0.5, 1 - neck.surface)
    kinds: list[str] = []
    for area in random_areas(view, int(rng.integers(2, 5))):
        if barrier.min() >= 0:
            break
        kind = _draw(rng, LOOKALIKES)
        largest, roughness = (30, 0.02) if kind == "vessel" else (150, rng.uniform(0.02, 0.08))
        lump = random_lump(view, -barrier, -barrier, min(0.8 * area, largest), 1, roughness)
        if (lump > 0).any():  # not squeezed to nothing between the organs
            paint_lookalike(medium, view, lump, kind)
            kinds.append(kind)
            lookalike |= lump > 0
            barrier = np.maximum(barrier, lump + 1)
    return kinds, lookalike & (gland <= 0) & (shadow <= 0)


def random_anatomy(rng: np.random.Generator, kinds: Sequence[str]) -> tuple[View, Neck, list[Array], Array]:
    """A view, its organs, the outlines of its nodules and of the gland, drawn until all are in sight."""
    while True:
        view = View.random(rng)
        neck = random_neck(view)
        lumps, gland = place_nodules(view, neck, kinds)
        seen = [(lump > 0).mean() >= SMALLEST for lump in lumps]
        if len(seen) == len(kinds) and all(seen) and (gland > 0).mean() > 5 * SMALLEST:
            return view, neck, lumps, gland


def scan(rng: np.random.Generator, nodules: int) -> Scan:
    """One synthetic frame of a random neck with this many nodules (one to three fit any gland)."""
    scanner = Scanner.random(rng)
    kinds = [_draw(rng, {kind: NODULE_KINDS[kind].share for kind in NODULE_KINDS}) for _ in range(nodules)]
    view, neck, lumps, gland = random_anatomy(rng, kinds)
    medium = Medium.uniform(gland.shape, CONNECTIVE)
    paint_neck(medium, view, neck, gland)
    described = [paint_nodule(medium, view, lump, kind) for lump, kind in zip(lumps, kinds, strict=True)]
    lookalikes, lookalike = add_lookalikes(medium, view, neck, gland)
    image = log_compress(envelope(medium, scanner, view.px, rng), scanner)
    nodule = np.maximum.reduce([np.full(gland.shape, FAR), *lumps]) > 0
    return Scan(image, gland > 0, nodule, lookalike, described, lookalikes)


# ------------------------------------------------------------------------------------------------- on disk


def _write_image(root: Path, seed: int, job: tuple[str, int]) -> dict:
    """Write one image with its masks; returns what phantom.json tells about it."""
    split, index = job
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    count = rng.choice(2, p=[0.75, 0.25]) if split == "gland" else rng.choice([1, 2, 3], p=[0.85, 0.11, 0.04])
    frame = scan(rng, int(count))
    if split == "gland":
        folder, mask, aside, other = "tg3k/thyroid", frame.gland, frame.nodule, "nodule"
    else:
        folder, mask, aside, other = f"tn3k/{split}", frame.nodule, frame.gland, "gland"
    files = [(f"{folder}-image", frame.image), (f"{folder}-mask", mask), (f"analysis/{split}-{other}", aside)]
    for name, picture in files:
        path = root / name / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).convert("L").save(path)  # a mask as 0 and 255
    return {"split": split, "index": index, "nodules": frame.nodules, "lookalikes": len(frame.lookalikes)}


def _write_lists(folder: Path, trainval: int, gland: int) -> None:
    """The index lists of the cross-validation folds of TN3K and of the one split of TG3K."""

    def write(name: str, count: int, val: range) -> None:
        lists = {"train": [index for index in range(count) if index not in val], "val": list(val)}
        (folder / name).write_text(json.dumps(lists))

    for fold in range(FOLDS):
        write(f"tn3k/tn3k-trainval-fold{fold}.json", trainval, range(fold, trainval, FOLDS))
    write("tg3k/tg3k-trainval.json", gland, range(gland * 9 // 10, gland))


def _description(root: Path | str) -> dict | None:
    """The contents of phantom.json, None where there is no phantom set of any version."""
    try:
        description = json.loads((Path(root) / "phantom.json").read_text())
    except (OSError, ValueError):
        return None
    return description if isinstance(description, dict) and description.get("format") == FORMAT else None


def is_phantom(root: Path | str) -> bool:
    """Whether a complete phantom set of this version is there."""
    return (_description(root) or {}).get("version") == VERSION


def make_phantom(
    root: Path | str,
    trainval: int = 300,
    test: int = 60,
    gland: int = 420,
    seed: int = 1234,
    progress: bool = True,
    workers: int = 0,
) -> None:
    """Write a whole set to root, replacing an earlier phantom set but no other folder.

    workers: processes to use, 0 for one per processor. An image depends on seed, split and index only.
    """
    root = Path(root)
    if root.exists() and _description(root) is None:
        raise FileExistsError(f"{root} is not a phantom set, so it is kept: move it away or choose another folder")
    counts = dict(zip(SPLITS, (trainval, test, gland), strict=True))
    jobs = [(split, index) for split in SPLITS for index in range(counts[split])]
    bar = partial(tqdm, total=len(jobs), desc="phantom", unit="image", disable=not progress)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        folder = Path(temporary) / root.name  # becomes root when all is written
        write = partial(_write_image, folder, seed)
        if workers == 1:
            images = list(bar(map(write, jobs)))
        else:
            with ProcessPoolExecutor(workers or None, multiprocessing.get_context("spawn")) as pool:
                images = list(bar(pool.map(write, jobs, chunksize=8)))
        _write_lists(folder, trainval, gland)
        description = {"format": FORMAT, "version": VERSION, "seed": seed, "counts": counts, "images": images}
        (folder / "phantom.json").write_text(json.dumps(description, indent=1))
        if root.exists():
            shutil.rmtree(root)
        folder.rename(root)
