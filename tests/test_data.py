"""From files to batches: pairing, mask rules, folds, resizing, flips, order, collation."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, shared, write_image
from torch.utils.data import DataLoader

from dataloaders import TEST_OF, TESTING, TRAINING, tasks_to_train, training_samples
from dataloaders.datasets import Batch, EpochBatches, EvalSet, Prepared, Reader, TrainSet, ValidationSet, collate
from dataloaders.samples import Sample, list_samples, mask_authors, mask_clean, read_split
from dataloaders.tatn import pair
from dataloaders.transforms import denormalise, flip, normalise, resize_image, resize_mask
from utils.errors import UserError

BOTH = ("nodule", "gland")


def numbers(samples: list[Sample]) -> list[int]:
    return [int(sample.image.stem) for sample in samples]


def sample_of(folder: Path, image: np.ndarray, mask: np.ndarray, task: str = "nodule", number: int = 1) -> Sample:
    """A sample on disk, lossless."""
    return Sample(
        write_image(folder / f"image/{number}.png", image),
        write_image(folder / f"mask/{number}.png", mask),
        task,
        "TN3K",
    )


def plain_sample(number: int, task: str = "nodule") -> Sample:
    """A sample that only has a name."""
    return Sample(Path(f"{task}-image/{number}.png"), Path(f"{task}-mask/{number}.png"), task, "TN3K")


# --- listing -----------------------------------------------------------------------------------------------


def test_pairs_by_number_in_numeric_order(tmp_path: Path) -> None:
    images = ["10.jpg", "9.JPG", "1.PNG", "0002.jpeg", "100.bmp", "03.tif"]
    masks = ["0001.jpg", "2.png", "3.PNG", "0009.png", "10.png", "0100.png"]
    for name in images:
        write_image(tmp_path / "image" / name, np.zeros((8, 8), np.uint8))
    for name in masks:
        write_image(tmp_path / "mask" / name, np.eye(8, dtype=bool))
    samples = list_samples(tmp_path / "image", tmp_path / "mask", "nodule", "DDTI")
    assert [(sample.image.name, sample.mask.name) for sample in samples] == [
        ("1.PNG", "0001.jpg"),
        ("0002.jpeg", "2.png"),
        ("03.tif", "3.PNG"),
        ("9.JPG", "0009.png"),
        ("10.jpg", "10.png"),
        ("100.bmp", "0100.png"),
    ]
    assert {(sample.task, sample.source) for sample in samples} == {("nodule", "DDTI")}
    assert samples[0].name == "image/1.PNG"


@pytest.mark.parametrize("fold", range(5))
def test_fold_is_the_one_on_disk(fold: int, data_root: Path) -> None:
    train, val = training_samples("TN3K", ("nodule",), data_root, fold)
    assert numbers(val) == [fold, fold + 5]
    assert numbers([sample for (sample,) in train]) == [i for i in range(10) if i % 5 != fold]
    assert all(sample.task == "nodule" and sample.image.parent.name == "trainval-image" for sample in val)


def test_split_means_places_in_the_numeric_order_not_numbers(tmp_path: Path) -> None:
    root = make_data(tmp_path, size=(16, 16)) / "tn3k"
    for folder in ("trainval-image", "trainval-mask"):
        (root / folder / "0009.jpg").rename(root / folder / "12.jpg")
    (root / "tn3k-trainval-fold0.json").write_text(json.dumps({"train": [9, 2], "val": [0]}))
    train, val = training_samples("TN3K", ("nodule",), tmp_path, 0)
    assert numbers([sample for (sample,) in train]) == [12, 2]
    assert numbers(val) == [0]


def test_read_split(tmp_path: Path) -> None:
    path = tmp_path / "fold.json"
    path.write_text('{"train": [3, 1], "val": [0], "comment": "kept out"}')
    assert read_split(path, 4, "TN3K") == {"train": [3, 1], "val": [0]}


def test_glands_have_one_split(data_root: Path) -> None:
    for fold in (0, 4):
        train, val = training_samples("TG3K", ("gland",), data_root, fold)
        assert numbers([sample for (sample,) in train]) == list(range(12))
        assert numbers(val) == [12, 13]
        assert {sample.task for sample in val} == {"gland"}


def test_gland_frame_goes_with_floor_of_1_4_i() -> None:
    nodules = [plain_sample(i) for i in range(2303)]
    glands = [plain_sample(i, "gland") for i in range(3226)]
    pairs = pair(nodules, glands)
    assert [nodule for nodule, _ in pairs] == nodules
    chosen = numbers([gland for _, gland in pairs])
    assert chosen[:11] == [0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 14]
    # 1.4 * 45 is 63 on paper and 62.99... in floating point, which the release computes in.
    assert chosen[45] == 62
    assert chosen[-1] == 3222
    assert len(set(chosen)) == 2303


def test_glands_start_again_when_there_are_too_few() -> None:
    pairs = pair([plain_sample(i) for i in range(9)], [plain_sample(i, "gland") for i in range(5)])
    assert numbers([gland for _, gland in pairs]) == [0, 1, 2, 4, 0, 2, 3, 4, 1]


def test_two_task_items_are_pairs_and_validation_is_on_nodules(data_root: Path) -> None:
    train, val = training_samples("TATN", BOTH, data_root, 0)
    assert [tuple(sample.task for sample in item) for item in train] == [BOTH] * 8
    assert numbers([nodule for nodule, _ in train]) == [1, 2, 3, 4, 6, 7, 8, 9]
    assert numbers([gland for _, gland in train]) == [0, 1, 2, 4, 5, 7, 8, 9]
    assert [(sample.task, int(sample.image.stem)) for sample in val] == [("nodule", 0), ("nodule", 5)]


def test_one_task_network_gets_one_sample_of_tatn(data_root: Path) -> None:
    assert training_samples("TATN", ("nodule",), data_root, 1) == training_samples("TN3K", ("nodule",), data_root, 1)


@pytest.mark.parametrize(
    ("dataset", "tasks", "learned"),
    [
        ("TN3K", ("nodule",), ("nodule",)),
        ("TG3K", ("nodule",), ("gland",)),
        ("TATN", ("nodule",), ("nodule",)),
        ("TATN", BOTH, BOTH),
        ("PHANTOM", ("nodule",), ("nodule",)),
        ("PHANTOM", BOTH, BOTH),
    ],
)
def test_what_a_network_learns(dataset: str, tasks: tuple[str, ...], learned: tuple[str, ...]) -> None:
    assert tasks_to_train(dataset, "any", tasks) == learned


def test_test_images(data_root: Path) -> None:
    samples = TESTING["TN3K"](data_root)
    assert [sample.name for sample in samples] == ["test-image/0000.jpg", "test-image/0001.jpg", "test-image/0002.jpg"]
    assert [sample.name for sample in TESTING["DDTI"](data_root)] == ["image/1.PNG", "image/2.PNG", "image/3.PNG"]
    assert TEST_OF.keys() <= TRAINING.keys()
    assert set(TEST_OF.values()) <= TESTING.keys()


def test_real_data_is_listed_and_decoded() -> None:
    root = shared("data", "ddti-tg3k")
    train, val = training_samples("TATN", BOTH, root, 0)
    test, (gland_train, gland_val) = TESTING["TN3K"](root), training_samples("TG3K", ("gland",), root, 0)
    assert (len(train) + len(val), len(test), len(gland_train) + len(gland_val)) == (401, 101, 525)
    folds = [training_samples("TN3K", ("nodule",), root, fold) for fold in range(5)]
    assert sorted(numbers([sample for _, part in folds for sample in part])) == numbers(
        list_samples(root / "tn3k/trainval-image", root / "tn3k/trainval-mask", "nodule", "TN3K")
    )
    for part, held_out in folds:
        assert len(part) + len(held_out) == 401
        assert not {sample for (sample,) in part} & set(held_out)
    for sample in (*train[0], *train[-1], val[-1], test[0], gland_val[-1]):
        image, mask = sample.read()
        assert image.shape == (*mask.shape, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert 0 < mask_clean(mask).mean() < 1


# --- mask rules --------------------------------------------------------------------------------------------


def test_mask_rules_by_hand() -> None:
    values = np.array([[0, 4, 126, 127], [128, 251, 254, 255]], np.uint8)
    assert mask_clean(values).tolist() == [[False] * 4, [True] * 4]
    assert mask_authors(values).tolist() == [[False] * 4, [False, False, False, True]]
    # The release divides by the mask's own maximum.
    assert mask_authors(values[:, :3]).tolist() == [[False] * 3, [False, False, True]]
    assert not mask_authors(np.zeros((2, 2), np.uint8)).any()
    release = (values / values.max()).astype(np.uint8)
    assert (mask_authors(values) == (release == 1)).all()


def test_authors_rule_loses_foreground_of_jpeg_masks() -> None:
    folder = shared("data", "tn3k-samples")
    samples = list_samples(folder / "image", folder / "mask", "nodule", "TN3K")
    assert numbers(samples) == [0, 1, 2, 3, 4, 5, 6, 10, 15]
    losses = []
    for sample in samples:
        values = sample.read()[1]
        # JPEG moved the values by a dozen at most, so that any threshold well between tells what was drawn.
        assert not ((values > 20) & (values < 235)).any()
        clean, authors = mask_clean(values), mask_authors(values)
        assert (clean == (values > 20)).all()
        assert not (authors & ~clean).any()
        assert authors.sum() < clean.sum()
        losses.append(1 - authors.sum() / clean.sum())
    print(f"the authors' rule loses {100 * np.mean(losses):.1f} % of the foreground on average")
    assert np.mean(losses) == pytest.approx(0.141, abs=0.001)


@pytest.mark.parametrize("rule", ["clean", "authors"])
def test_reader_uses_the_rule_before_it_resizes(rule: str, tmp_path: Path) -> None:
    values = np.zeros((8, 8), np.uint8)
    values[:, 4:6], values[:, 6:] = 252, 255
    prepared = Reader(4, rule)(sample_of(tmp_path, values, values))
    assert prepared.mask.dtype == bool
    assert prepared.mask.tolist() == [[False, False, rule == "clean", True]] * 4
    assert prepared.share == (0.5 if rule == "clean" else 0.25)


# --- transforms --------------------------------------------------------------------------------------------


def test_mask_resize_takes_the_pixel_at_the_centre() -> None:
    # Of 4 columns for 2, the centres 0.5 and 1.5 lie at 1 and 3: the second and the fourth.
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = mask[3, 3] = mask[0, 2] = mask[2, 0] = True
    assert resize_mask(mask, 2).tolist() == [[True, False], [False, True]]
    assert resize_mask(np.array([[True, False]]), 4).tolist() == [[True, True, False, False]] * 4
    assert resize_mask(mask, 2).dtype == bool


def test_image_resize_by_hand() -> None:
    assert (resize_image(np.full((5, 7, 3), 93, np.uint8), 4) == 93).all()
    ramp = np.broadcast_to(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], (4, 8, 3))
    small = resize_image(np.ascontiguousarray(ramp), 4)
    # Pillow widens the triangle when it shrinks: weights 1, 3, 3, 1 of eighths, cut off and renormalised at the edges,
    # (0 * 3 + 10 * 3 + 20 * 1) / 7 = 7.1; without the widening it would be 5.
    assert small[..., 0].tolist() == [[7, 25, 45, 63]] * 4
    assert (small == small[..., :1]).all()
    # Enlarged, the centres lie at -1/4, 1/4, 3/4, 5/4 of a pixel.
    two = np.repeat(np.array([[[0], [100]]], np.uint8), 3, axis=2)
    assert resize_image(two, 4)[..., 0].tolist() == [[0, 25, 75, 100]] * 4


def test_channels_stay_apart_and_axes_in_place() -> None:
    image = np.zeros((6, 4, 3), np.uint8)
    image[:3, :, 0], image[:, :2, 1], image[..., 2] = 200, 100, 50
    small = resize_image(image, 2)
    assert small.shape == (2, 2, 3)
    assert (small[0, :, 0] > small[1, :, 0]).all()
    assert (small[:, 0, 1] > small[:, 1, 1]).all()
    assert (small[..., 2] == 50).all()


def test_normalise_by_hand() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1] = (255, 0, 128)
    out = normalise(np.stack([np.zeros_like(image), image]))
    assert out.shape == (2, 3, 2, 3)
    assert (out[0] == out[1, :, :1, :1]).all()
    out = out[1]
    assert out.dtype == torch.float32
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225])
    torch.testing.assert_close(out[:, 0, 1], expected)
    torch.testing.assert_close(out[:, 1, 2], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


def test_normalise_is_the_formula_to_the_last_bit() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
    assert (normalise(image).numpy().transpose(0, 2, 3, 1) == (image.astype(np.float32) / 255 - mean) / std).all()


def test_denormalise_is_the_inverse() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image[..., 1] = image[..., 1].T
    assert (denormalise(normalise(image[None])[0]) == image).all()
    assert denormalise(torch.full((3, 1, 1), 99.0)).tolist() == [[[255] * 3]]
    assert denormalise(torch.full((3, 1, 1), -99.0)).tolist() == [[[0] * 3]]


def test_flip_mirrors_left_and_right_image_and_mask_together() -> None:
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    mask = np.array([[True, False, False], [False, True, False]])
    seen = Counter()
    rng = np.random.default_rng(0)
    for _ in range(50):
        out, out_mask = flip(image, mask, rng)
        mirrored = (out != image).any()
        seen[mirrored] += 1
        assert (out == (np.fliplr(image) if mirrored else image)).all()
        assert (out_mask == (np.fliplr(mask) if mirrored else mask)).all()
    assert min(seen[True], seen[False]) > 10


# --- training items ----------------------------------------------------------------------------------------


@pytest.fixture
def lopsided(tmp_path: Path) -> list[tuple[Sample, Sample]]:
    """Twelve (nodule, gland) pairs, bright and labelled on the left, so that a flip shows."""
    image = np.zeros((8, 8), np.uint8)
    image[:, :4] = 200
    items = []
    for number in range(1, 13):
        items.append(tuple(sample_of(tmp_path / task, image + number, image > 0, task, number) for task in BOTH))
    return items


def flips(entries: list[tuple[Sample, Prepared]]) -> tuple[bool, ...]:
    """Whether each sample of an item is flipped; image and mask must agree on it."""
    for _, prepared in entries:
        assert (prepared.image[0, 0, 0] > 100) == prepared.mask[0, 0]
        assert prepared.mask[0, 0] != prepared.mask[0, -1]
    return tuple(not bool(prepared.mask[0, 0]) for _, prepared in entries)


def test_nodule_and_gland_flip_apart_with_probability_one_half(lopsided: list) -> None:
    data = TrainSet(lopsided, Reader(8), seed=1234)
    draws = Counter(flips(data[epoch, index]) for epoch in range(50) for index in range(12))
    # 600 draws of four equal chances: 150 expected, standard deviation 10.6, five of them allowed.
    assert len(draws) == 4
    assert all(abs(count - 150) < 53 for count in draws.values())


def test_flips_come_from_seed_epoch_and_index_alone(lopsided: list) -> None:
    reader = Reader(8)

    def all_flips(seed: int, epoch: int) -> list[tuple[bool, ...]]:
        data = TrainSet(lopsided, reader, seed)
        return [flips(data[epoch, index]) for index in range(len(data))]

    first = all_flips(1, 0)
    backwards = TrainSet(lopsided, reader, 1)
    assert [flips(backwards[0, index]) for index in reversed(range(12))] == first[::-1]
    assert all_flips(1, 0) == first
    assert all_flips(1, 1) != first
    assert all_flips(2, 0) != first


def test_flip_leaves_the_cached_sample_alone(lopsided: list) -> None:
    reader = Reader(8)
    data = TrainSet(lopsided, reader, 5)
    assert {flips(data[epoch, 0])[0] for epoch in range(20)} == {True, False}
    assert not flips([(lopsided[0][0], reader(lopsided[0][0]))])[0]


def test_validation_is_never_flipped(lopsided: list) -> None:
    nodules = [nodule for nodule, _ in lopsided]
    data = ValidationSet(nodules, Reader(8))
    assert len(data) == 12
    images, batch = data.batch(range(12))
    assert images is batch.image
    assert (images[:, :, 0, 0] > images[:, :, 0, -1]).all()
    assert (batch.masks["nodule"][..., 0] == 1).all()
    assert (batch.masks["nodule"][..., -1] == 0).all()
    assert batch.names == [nodule.name for nodule in nodules]
    assert data.batch([3, 1])[1].names == [nodules[3].name, nodules[1].name]
    assert data.tasks == ("nodule",)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_whatever_the_number_of_workers(workers: int, data_root: Path) -> None:
    items, _ = training_samples("TATN", BOTH, data_root, 0)
    sampler = EpochBatches(len(items), 3, 7)
    loader = DataLoader(
        TrainSet(items, Reader(16), 7),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    direct = TrainSet(items, Reader(16, cache_bytes=0), 7)
    for epoch in (0, 3):
        sampler.epoch = epoch
        keys = list(sampler)
        batches = list(loader)
        assert len(batches) == 2
        for number, batch in enumerate(batches):
            expected = collate([direct[key] for key in keys[number]])
            assert batch.names == expected.names
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.share, expected.share)
            assert all(torch.equal(batch.masks[task], expected.masks[task]) for task in BOTH)


def test_order_of_an_epoch() -> None:
    def keys(sampler: EpochBatches) -> list[tuple[int, int]]:
        return [key for batch in sampler for key in batch]

    sampler = EpochBatches(50, 5, 1234)
    first = keys(sampler)
    assert len(sampler) == len(list(sampler)) == 10
    assert {epoch for epoch, _ in first} == {0}
    assert sorted(index for _, index in first) == list(range(50))
    assert [index for _, index in first] != list(range(50))
    assert keys(sampler) == first == keys(EpochBatches(50, 5, 1234))
    assert keys(EpochBatches(50, 5, 1235)) != first
    sampler.epoch = 1
    second = keys(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert sorted(index for _, index in second) == list(range(50))
    assert [index for _, index in second] != [index for _, index in first]
    sampler.epoch = 0
    assert keys(sampler) == first


def test_the_last_incomplete_batch_is_dropped() -> None:
    sampler = EpochBatches(11, 4, 0)
    assert [len(batch) for batch in sampler] == [4, 4]
    assert len(sampler) == 2


def test_processes_share_each_batch_between_them() -> None:
    whole = list(EpochBatches(26, 6, 3))
    parts = [list(EpochBatches(26, 6, 3, part, 3)) for part in range(3)]
    joined = [[key for part in batch for key in part] for batch in zip(*parts, strict=True)]
    assert joined == whole
    assert {len(batch) for part in parts for batch in part} == {2}


# --- reading -----------------------------------------------------------------------------------------------


def test_reader_keeps_what_it_read(tmp_path: Path) -> None:
    samples = [sample_of(tmp_path, np.full((8, 8), 9 * n, np.uint8), np.eye(8, dtype=bool), number=n) for n in (1, 2)]
    # A sample at 8 x 8 takes 8 * 8 * (3 + 1) bytes: there is room for one.
    kept, none = Reader(8, cache_bytes=256), Reader(8, cache_bytes=0)
    before = [kept(sample) for sample in samples]
    assert (none(samples[0]).image == before[0].image).all()
    for sample in samples:
        write_image(sample.image, np.full((8, 8), 77, np.uint8))
    assert (kept(samples[0]).image == 9).all()
    assert (kept(samples[1]).image == 77).all()
    assert (none(samples[0]).image == 77).all()
    samples[0].image.unlink()
    assert (kept(samples[0]).image == 9).all()
    assert kept(samples[0]).share == 1 / 8


def test_check_reads_each_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample_of(tmp_path, np.zeros((8, 8), np.uint8), np.eye(8, dtype=bool), number=n) for n in (1, 2)]
    read, whole = [], Sample.read
    monkeypatch.setattr(Sample, "read", lambda self: read.append(self) or whole(self))
    Reader(8, cache_bytes=0).check([samples[0], samples[1], samples[0]])
    assert read == samples


def test_share_is_of_the_native_image(tmp_path: Path) -> None:
    mask = np.zeros((40, 20), bool)
    mask[3, 5:7] = True
    prepared = Reader(4)(sample_of(tmp_path, np.zeros((40, 20), np.uint8), mask))
    assert not prepared.mask.any()
    assert prepared.share == 2 / 800


def test_evaluation_images_keep_their_size_and_raw_mask(tmp_path: Path) -> None:
    sizes = [(40, 30), (17, 23)]
    samples = []
    for number, (height, width) in enumerate(sizes):
        image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        mask = np.full((height, width), 3, np.uint8)
        mask[: height // 2] = 252
        mask[0] = 255
        samples.append(sample_of(tmp_path, image, mask, number=number))
    data = EvalSet(samples, 16)
    assert len(data) == 2
    images, entries = data.batch([0, 1])
    assert images.shape == (2, 3, 16, 16)
    for number, size in enumerate(sizes):
        entry = entries[number]
        assert entry.sample == samples[number]
        assert entry.native.shape == (*size, 3)
        assert np.unique(entry.mask).tolist() == [3, 252, 255]
        assert torch.equal(images[number], normalise(resize_image(entry.native, 16)[None])[0])
    assert [entry.sample for entry in data.batch([1])[1]] == samples[1:]


# --- batches -----------------------------------------------------------------------------------------------


def entry(task: str, number: int, share: float = 0.0) -> tuple[Sample, Prepared]:
    """A sample of 2 x 2 whose grey value and mask tell its number."""
    mask = np.zeros(4, bool)
    mask[number % 4] = True
    return plain_sample(number, task), Prepared(np.full((2, 2, 3), number, np.uint8), mask.reshape(2, 2), share)


def grey_of(batch: Batch) -> list[int]:
    return [int(denormalise(image)[0, 0, 0]) for image in batch.image]


def test_collate_interleaves_pairs() -> None:
    batch = collate([[entry("nodule", 1, 0.25), entry("gland", 11)], [entry("nodule", 2, 0.5), entry("gland", 13)]])
    assert grey_of(batch) == [1, 11, 2, 13]
    assert batch.image.shape == (4, 3, 2, 2)
    assert {task: rows.tolist() for task, rows in batch.rows.items()} == {"nodule": [0, 2], "gland": [1, 3]}
    assert batch.masks["nodule"].tolist() == [[[[0, 1], [0, 0]]], [[[0, 0], [1, 0]]]]
    assert batch.masks["gland"].tolist() == [[[[0, 0], [0, 1]]], [[[0, 1], [0, 0]]]]
    assert batch.masks["nodule"].dtype == torch.float32
    assert batch.share.tolist() == [[0.25], [0.5]]
    assert batch.share.dtype == torch.float32
    assert batch.names == ["nodule-image/1.png", "gland-image/11.png", "nodule-image/2.png", "gland-image/13.png"]


def test_collate_of_one_task() -> None:
    batch = collate([[entry("gland", 1)], [entry("gland", 2)], [entry("gland", 3)]])
    assert {task: rows.tolist() for task, rows in batch.rows.items()} == {"gland": [0, 1, 2]}
    assert batch.masks["gland"].shape == (3, 1, 2, 2)
    assert batch.share.numel() == 0
    batch = collate([[entry("nodule", 1, 0.1)], [entry("nodule", 2, 0.2)]])
    assert batch.share.shape == (2, 1)


def test_batch_moves_as_a_whole() -> None:
    batch = collate([[entry("nodule", 1, 0.25), entry("gland", 2)]])
    moved = batch.to(torch.device("meta"))
    for tensor in (moved.image, moved.share, *moved.rows.values(), *moved.masks.values()):
        assert tensor.device.type == "meta"
    assert moved.rows.keys() == moved.masks.keys() == {"nodule", "gland"}
    assert moved.names == batch.names
    assert batch.image.device.type == "cpu"


@pytest.mark.parametrize("train", ["[1.7, 2]", '"123"', "[true, 2]", "[1, 1, 2]", "[Infinity]", "[null]"])
def test_a_list_that_is_not_of_different_whole_numbers(tmp_path: Path, train: str) -> None:
    path = tmp_path / "fold.json"
    path.write_text(f'{{"train": {train}, "val": [0]}}')
    with pytest.raises(UserError, match=r"fold\.json: expected .*indices"):
        read_split(path, 10, "TN3K")
