"""The phantom set: its files, its anatomy and the physics of its images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dataloaders import phantom, ultrasound
from dataloaders.phantom import FLUID, GLAND, Scan, View, is_phantom, make_phantom
from dataloaders.ultrasound import Array, Medium, Scanner, envelope

COUNTS = {"trainval": 7, "test": 2, "gland": 10}
PX = 0.13  # mm per pixel


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def grey(path: Path) -> Array:
    image = np.asarray(Image.open(path))
    assert (image.dtype, image.ndim) == (np.uint8, 2), path
    return image


def decibel(amplitude: Array) -> float:
    return float(10 * np.log10(np.mean(amplitude.astype(float) ** 2)))


def uniform_medium(height: int = 260, width: int = 260) -> Medium:
    return Medium.uniform((height, width), GLAND)


def detect(medium: Medium, **settings: float) -> Array:
    scanner = Scanner(**{"noise": -200.0, **settings})
    return envelope(medium, scanner, PX, np.random.default_rng(0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantom"
    make_phantom(root, **COUNTS, seed=3, progress=False, workers=1)
    return root


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return [phantom.scan(np.random.default_rng([11, k]), k % 4) for k in range(40)]


@pytest.fixture(scope="module")
def singles() -> list[Scan]:
    return [phantom.scan(np.random.default_rng([12, k]), 1) for k in range(40)]


# ------------------------------------------------------------------------------------------------- on disk


def test_same_seed_same_bytes_with_any_number_of_processes(root: Path, tmp_path: Path) -> None:
    make_phantom(tmp_path / "again", **COUNTS, seed=3, progress=False, workers=2)
    assert contents(tmp_path / "again") == contents(root)


def test_image_does_not_depend_on_the_counts_but_on_the_seed(root: Path, tmp_path: Path) -> None:
    for name, seed in (("fewer", 3), ("other", 4)):
        make_phantom(tmp_path / name, trainval=2, test=1, gland=1, seed=seed, progress=False, workers=1)
    whole, fewer, other = (
        {name: data for name, data in contents(folder).items() if name.endswith(".png")}
        for folder in (root, tmp_path / "fewer", tmp_path / "other")
    )
    assert len(fewer) == 3 * (2 + 1 + 1)
    assert fewer.items() <= whole.items()
    images = [name for name in fewer if "-image/" in name]
    assert len(images) == 4
    assert all(fewer[name] != other[name] for name in images)
    assert len({fewer[name] for name in images}) == 4, "splits share images"


def test_layout(root: Path) -> None:
    expected = {"phantom.json", "tg3k/tg3k-trainval.json"}
    expected |= {f"tn3k/tn3k-trainval-fold{k}.json" for k in range(5)}
    folders = {
        COUNTS["trainval"]: ("tn3k/trainval-image", "tn3k/trainval-mask", "analysis/trainval-gland"),
        COUNTS["test"]: ("tn3k/test-image", "tn3k/test-mask", "analysis/test-gland"),
        COUNTS["gland"]: ("tg3k/thyroid-image", "tg3k/thyroid-mask", "analysis/gland-nodule"),
    }
    for count, names in folders.items():
        expected |= {f"{name}/{index:04d}.png" for name in names for index in range(count)}
    assert set(contents(root)) == expected


def test_index_lists(root: Path) -> None:
    for fold in range(5):
        lists = json.loads((root / f"tn3k/tn3k-trainval-fold{fold}.json").read_text())
        assert lists["val"] == [i for i in range(7) if i % 5 == fold]
        assert lists["train"] == [i for i in range(7) if i % 5 != fold]
    assert json.loads((root / "tg3k/tg3k-trainval.json").read_text()) == {"train": list(range(9)), "val": [9]}


def test_masks_are_binary_and_as_large_as_their_image(root: Path) -> None:
    sizes = set()
    for images, masks, aside in (
        ("tn3k/trainval-image", "tn3k/trainval-mask", "analysis/trainval-gland"),
        ("tn3k/test-image", "tn3k/test-mask", "analysis/test-gland"),
        ("tg3k/thyroid-image", "tg3k/thyroid-mask", "analysis/gland-nodule"),
    ):
        for path in sorted((root / images).iterdir()):
            image, mask, other = grey(path), grey(root / masks / path.name), grey(root / aside / path.name)
            assert image.shape == mask.shape == other.shape
            assert set(np.unique(mask)) == {0, 255}
            assert set(np.unique(other)) <= {0, 255}
            gland, nodule = (mask, other) if images.startswith("tg3k") else (other, mask)
            assert (gland[nodule > 0] == 255).all(), "nodule mask and gland mask are mixed up"
            assert all(256 <= side <= 360 for side in image.shape)
            sizes.add(image.shape)
    assert len(sizes) > 10


def test_description(root: Path) -> None:
    description = json.loads((root / "phantom.json").read_text())
    assert description["version"] == phantom.VERSION
    assert description["seed"] == 3
    assert description["counts"] == COUNTS
    assert len(description["images"]) == sum(COUNTS.values())
    for image in description["images"]:
        mask = "analysis/gland-nodule" if image["split"] == "gland" else f"tn3k/{image['split']}-mask"
        assert bool(image["nodules"]) == grey(root / mask / f"{image['index']:04d}.png").any()
        assert image["lookalikes"] >= 0


def test_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    save = Image.Image.save

    def interrupted(image: Image.Image, path: Path) -> None:
        written.append(path)
        if len(written) > 4:
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "phantom", 3, 1, 1, progress=False, workers=1)
    assert len(written) == 5
    assert not is_phantom(tmp_path / "phantom")
    assert list(tmp_path.iterdir()) == []


def test_is_phantom(root: Path, tmp_path: Path) -> None:
    assert is_phantom(root)
    assert is_phantom(str(root))
    assert not is_phantom(tmp_path / "missing")
    description = (root / "phantom.json").read_text()
    newer = json.dumps({**json.loads(description), "version": phantom.VERSION + 1})
    for text in ("", description[: len(description) // 2], "[]", "{}", '{"version": 1}', newer):
        (tmp_path / "phantom.json").write_text(text)
        assert not is_phantom(tmp_path), text[:50]


def test_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "phantom").mkdir()
    (tmp_path / "phantom" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"not a phantom set.* move it away or choose another folder"):
        make_phantom(tmp_path / "phantom", 1, 1, 1, progress=False, workers=1)
    assert contents(tmp_path / "phantom") == {"thesis.txt": b"years of work"}


def test_earlier_phantom_is_replaced(tmp_path: Path) -> None:
    for trainval in (2, 1):
        make_phantom(tmp_path / "phantom", trainval, 1, 1, progress=False, workers=1)
    assert is_phantom(tmp_path / "phantom")
    assert [path.name for path in (tmp_path / "phantom/tn3k/trainval-image").iterdir()] == ["0000.png"]


# ------------------------------------------------------------------------------------------------- anatomy


def test_nodules_lie_in_the_gland_and_lookalikes_outside(scans: list[Scan]) -> None:
    for number, frame in enumerate(scans):
        assert len(frame.nodules) == number % 4
        assert frame.nodule.any() == bool(frame.nodules)
        assert not (frame.nodule & ~frame.gland).any()
        assert not (frame.lookalike & frame.gland).any()
        assert frame.gland.mean() > 0.05
    assert np.mean([frame.lookalike.any() for frame in scans]) > 0.9


def test_nodule_sizes(singles: list[Scan]) -> None:
    areas = [frame.nodule.mean() for frame in singles]
    assert min(areas) >= 0.01
    assert 0.03 < np.median(areas) < 0.08
    assert max(areas) > 2 * np.median(areas)


def test_lookalikes_resemble_hypoechoic_nodules(scans: list[Scan], singles: list[Scan]) -> None:
    """Most frames hold one as large and as dark as a nodule: size and grey level alone cannot tell them apart."""

    def lumps(frame: Scan, mask: Array) -> list[float]:
        labels, count = ndimage.label(mask)
        parts = [labels == label for label in range(1, count + 1)]
        gland = frame.image[frame.gland & ~frame.nodule].mean()
        return [frame.image[part].mean() / gland for part in parts if part.mean() > phantom.SMALLEST]

    dark = [frame for frame in scans + singles if all("hypoechoic" in nodule for nodule in frame.nodules)]
    hypoechoic = [level for frame in dark for level in lumps(frame, frame.nodule)]
    assert len(hypoechoic) > 20
    low, high = np.quantile(hypoechoic, [0.05, 0.95])
    assert high < 1
    alike = [any(low < level < high for level in lumps(frame, frame.lookalike)) for frame in scans]
    assert np.mean(alike) > 0.75


def test_cyst_is_darker_than_the_gland(scans: list[Scan]) -> None:
    cysts = [frame for frame in scans if frame.nodules == ["cystic"]]
    assert cysts
    for frame in cysts:
        assert frame.image[frame.nodule].mean() < 0.6 * frame.image[frame.gland & ~frame.nodule].mean()


@pytest.mark.parametrize("kind", phantom.NODULE_KINDS)
def test_echogenicity_of_the_kinds(kind: str) -> None:
    for seed in range(5):
        view = View.random(np.random.default_rng([13, seed]))
        margin = view.ellipse(float(view.x[150, 130]), float(view.z[150, 130]), 8, 8)
        medium = Medium.uniform(margin.shape, GLAND)
        features = phantom.paint_nodule(medium, view, margin, kind).split(" + ")
        assert features[0] == kind
        core, rim = medium.echo[margin > 1], medium.echo[np.abs(margin) < 0.25]
        low, high = {
            "hypoechoic": (-15, -6),
            "isoechoic": (-3, 2.5),
            "hyperechoic": (5, 11),
            "cystic": (-30, -30),
        }.get(kind, (-30, 2))
        assert low <= np.median(core) <= high
        if kind == "isoechoic" or "halo" in features:  # or else nothing would show it
            assert "halo" in features
            assert np.median(rim) < -10
        if kind in ("mixed", "spongiform"):
            assert 0.02 < (core < -12).mean() < 0.98


def test_noise_has_unit_variance_and_the_length_asked_for() -> None:
    view = View.random(np.random.default_rng(6))
    lag = round(2 / view.px)
    fields = np.stack([view.noise(2, 6) for _ in range(40)])
    assert fields.mean() == pytest.approx(0, abs=0.05)
    assert fields.std(axis=0).min() > 0.5
    assert fields.std() == pytest.approx(1, abs=0.05)
    down, across = (fields[:, :-lag] * fields[:, lag:]).mean(), (fields[..., :-lag] * fields[..., lag:]).mean()
    assert down == pytest.approx(0.49, abs=0.06)  # of cubic B-splines one interval apart
    assert across > 0.85


# ------------------------------------------------------------------------------------------------- physics


def test_speckle_of_one_look_is_rayleigh_distributed() -> None:
    amplitude = detect(uniform_medium(400, 400), tgc=GLAND.attenuation)[20:-20]
    theory = np.sqrt(np.pi / (4 - np.pi))
    assert theory == pytest.approx(1.913, abs=1e-3)
    assert amplitude.mean() / amplitude.std() == pytest.approx(theory, rel=0.02)
    assert decibel(amplitude) == pytest.approx(0, abs=0.3)  # an exact TGC restores the level of the gland


def test_compounding_raises_the_speckle_snr_by_the_square_root_of_the_looks() -> None:
    amplitude = detect(uniform_medium(), tgc=GLAND.attenuation, looks=4)
    assert amplitude.mean() / amplitude.std() == pytest.approx(2 * 1.913, rel=0.06)


def test_speckle_is_wider_than_high_and_widens_off_focus() -> None:
    def lag_one(image: Array, axis: int) -> float:
        image = image - image.mean()
        first, second = (image[:-1], image[1:]) if axis == 0 else (image[:, :-1], image[:, 1:])
        return float((first * second).mean() / (image**2).mean())

    amplitude = detect(uniform_medium(400, 400), tgc=GLAND.attenuation, focus=15.0, cycles=2.0)
    rows = round(15 / PX)
    focus, deep = amplitude[rows - 30 : rows + 30], amplitude[-60:]
    assert lag_one(focus, 0) < lag_one(focus, 1) < lag_one(deep, 1)


def test_attenuation_with_depth() -> None:
    """Without TGC the level falls by 2 * attenuation * frequency per cm."""
    amplitude = detect(uniform_medium(), tgc=0.0, frequency=7.0)
    rows = round(10 / PX)
    fall = decibel(amplitude[60:100]) - decibel(amplitude[60 + rows : 100 + rows])
    assert fall == pytest.approx(2 * GLAND.attenuation * 7 * rows * PX / 10, abs=0.5)


def test_posterior_enhancement_behind_fluid() -> None:
    medium = uniform_medium()
    cyst = np.zeros(medium.echo.shape, bool)
    cyst[60:137, 90:170] = True  # 77 rows: 1 cm
    medium.fill(cyst, FLUID)
    amplitude = detect(medium, tgc=GLAND.attenuation)
    assert decibel(amplitude[75:120, 105:155]) < decibel(amplitude[75:120, :70]) - 20
    gain = decibel(amplitude[150:220, 110:150]) - decibel(amplitude[150:220, :60])
    assert gain == pytest.approx(2 * (GLAND.attenuation - FLUID.attenuation) * 8 * 77 * PX / 10, abs=1)


def test_macrocalcification_shadows() -> None:
    view = View.random(np.random.default_rng(5))
    medium = Medium.uniform(view.depth.shape, GLAND)
    margin = view.ellipse(float(view.x[100, 130]), float(view.z[100, 130]), 6, 6)
    phantom.calcify(medium, view, margin, "macrocalcification")
    rows, columns = np.nonzero(medium.attenuation > 1)
    amplitude = detect(medium, tgc=GLAND.attenuation)
    below = amplitude[rows.max() + 15 :]
    middle = round(columns.mean())
    beside = np.delete(below, np.s_[columns.min() - 20 : columns.max() + 21], axis=1)
    assert decibel(below[:, middle - 2 : middle + 3]) < decibel(beside) - 10
    front = rows < rows.mean()  # the back lies in the shadow of the front
    assert decibel(amplitude[rows[front], columns[front]]) > decibel(beside) + 5


def test_interfaces_reflect_less_as_they_turn_from_the_beam() -> None:
    row, column = np.mgrid[:200, :200]
    coefficient = (1.8 - 1.63) / (1.8 + 1.63)

    def reflection(below: Array) -> float:
        impedance = np.where(below, np.float32(1.8), np.float32(1.63))
        return np.abs(ultrasound.interfaces(impedance))[50:150, 50:150].max() / coefficient

    assert reflection(row > 100) == pytest.approx(1, rel=0.01)
    assert reflection(row > column) == pytest.approx(0.25, rel=0.05)
    assert reflection(column > 100) < 1e-3
    assert reflection(row > 300) == 0


def test_log_compression() -> None:
    scanner = Scanner(dynamic_range=60, gain=0.5)
    levels = ultrasound.log_compress(np.float32([[0, 10 ** (-15 / 20), 1, 10 ** (15 / 20), 1e9]]), scanner)
    assert levels.tolist() == [[0, 64, 128, 191, 255]]
