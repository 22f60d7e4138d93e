"""Mistakes a user makes: each ends with exit code 2 and a message that says what, where and what to do instead."""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script, write_image
from PIL import Image

from dataloaders import TESTING, tasks_to_train, training_samples
from dataloaders.datasets import Reader
from dataloaders.samples import Sample, list_samples, read_split
from model import create_model, network
from model.checkpoint import save_checkpoint
from train import training_loader
from utils.device import choose_compute
from utils.errors import UserError
from utils.options import eval_parser, parse_train_args
from utils.parallel import ALONE
from utils.run import Run

LINK = "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation"
# So small that data wrongly let through would cost a moment, not a training.
SMALL = ("-gpu", "cpu", "-width", 4, "-input_size", 16, "-batch_size", 2, "-nepochs", 1)


def message_of(script: str, *args: object) -> str:
    """What the script says on ending with a user's error, from the beginning of a line on."""
    result = run_script(script, *args)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    found = re.search(r"^error: .*", result.stderr, re.MULTILINE | re.DOTALL)
    assert found, result.stderr
    return found[0]


# --- damaged data, through the command line ----------------------------------------------------------------
#
# A damage is done to a data folder and answers the path the message must name and what else it must say. The link
# to the data is part of each message where getting the data anew would mend it.

Damage = Callable[[Path], tuple[Path, list[str]]]


def no_data(root: Path) -> tuple[Path, list[str]]:
    shutil.rmtree(root)
    return root / "tn3k/trainval-image", ["TN3K was expected there", "-data_root", "-dataset PHANTOM"]


def no_mask_folder(root: Path) -> tuple[Path, list[str]]:
    shutil.rmtree(root / "tn3k/trainval-mask")
    return root / "tn3k/trainval-mask", ["TN3K was expected there", "-data_root"]


def empty_folder(root: Path) -> tuple[Path, list[str]]:
    shutil.rmtree(root / "tn3k/trainval-image")
    (root / "tn3k/trainval-image").mkdir()
    return root / "tn3k/trainval-image", ["holds no images"]


def last_files_missing(root: Path) -> tuple[Path, list[str]]:
    for folder in ("trainval-image", "trainval-mask"):
        for number in (8, 9):
            (root / f"tn3k/{folder}/{number:04d}.jpg").unlink()
    return root / "tn3k/tn3k-trainval-fold0.json", ["index 8", "8 images were found", "0 to 7"]


def no_fold_file(root: Path) -> tuple[Path, list[str]]:
    path = root / "tn3k/tn3k-trainval-fold0.json"
    path.unlink()
    return path, ["no such file", "which images are for training"]


def image_without_mask(root: Path) -> tuple[Path, list[str]]:
    (root / "tn3k/trainval-mask/0004.jpg").unlink()
    (root / "tn3k/trainval-mask/0007.jpg").unlink()
    mask_dir = root / "tn3k/trainval-mask"
    return root / "tn3k/trainval-image/0004.jpg", [f"no mask in {mask_dir}", "number 4", "2 such images"]


def mask_without_image(root: Path) -> tuple[Path, list[str]]:
    (root / "tn3k/trainval-image/0004.jpg").unlink()
    image_dir = root / "tn3k/trainval-image"
    return root / "tn3k/trainval-mask/0004.jpg", [f"no image in {image_dir}", "number 4", "1 such mask"]


def mask_of_other_size(root: Path) -> tuple[Path, list[str]]:
    path = write_image(root / "tn3k/trainval-mask/0003.jpg", np.ones((40, 50), bool))
    return path, ["50 x 40", "64 x 48", "must agree", str(root / "tn3k/trainval-image/0003.jpg")]


def empty_mask(root: Path) -> tuple[Path, list[str]]:
    path = write_image(root / "tn3k/trainval-mask/0003.jpg", np.full((48, 64), 3, np.uint8))
    return path, ["empty", "largest value 3", "> 127", "every image of TN3K shows a nodule"]


def text_file(root: Path) -> tuple[Path, list[str]]:
    (root / "tn3k/trainval-image/0003.jpg").unlink()
    path = root / "tn3k/trainval-image/0003.png"
    path.write_text("<html>404 Not Found</html>\n")
    return path, ["cannot be read as an image", "whole .png file"]


def cut_in_half(path: Path) -> tuple[Path, list[str]]:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path, ["cannot be read as an image", f"whole {path.suffix} file"]


def truncated_jpeg(root: Path) -> tuple[Path, list[str]]:
    return cut_in_half(root / "tn3k/trainval-image/0005.jpg")


def truncated_png(root: Path) -> tuple[Path, list[str]]:
    (root / "tn3k/trainval-mask/0005.jpg").unlink()
    return cut_in_half(write_image(root / "tn3k/trainval-mask/0005.png", np.eye(48, 64, dtype=bool)))


def fold_file(root: Path, text: str) -> Path:
    path = root / "tn3k/tn3k-trainval-fold0.json"
    path.write_text(text)
    return path


def index_out_of_range(root: Path) -> tuple[Path, list[str]]:
    path = fold_file(root, '{"train": [1, 2, 3, 10, 11], "val": [0, 5]}')
    return path, ["index 10 of 'train'", "0 to 9", "10 images were found", "2 such"]


def not_json(root: Path) -> tuple[Path, list[str]]:
    return fold_file(root, "train: 1, 2, 3"), ['expected {"train": [indices], "val": [indices]}']


def no_val(root: Path) -> tuple[Path, list[str]]:
    return fold_file(root, '{"train": [1, 2, 3]}'), ['expected {"train": [indices], "val": [indices]}', "'val'"]


def index_on_both_sides(root: Path) -> tuple[Path, list[str]]:
    path = fold_file(root, '{"train": [1, 2, 3, 5], "val": [0, 2, 3]}')
    return path, ["index 2", "both 'train' and 'val'", "2 such"]


def duplicate_number(root: Path) -> tuple[Path, list[str]]:
    image = root / "tn3k/trainval-image/0003.jpg"
    return Path(shutil.copy(image, image.with_name("3.jpg"))), ["0003.jpg", "same number", "Keep one of the two"]


def no_number(root: Path) -> tuple[Path, list[str]]:
    image = root / "tn3k/trainval-image/0003.jpg"
    return image.rename(image.with_name("0003 copy.jpg")), ["expected a number for a name", "0012.jpg"]


DAMAGES: list[Damage] = [
    no_data,
    no_mask_folder,
    last_files_missing,
    image_without_mask,
    mask_without_image,
    mask_of_other_size,
    empty_mask,
    text_file,
    truncated_jpeg,
    index_out_of_range,
    not_json,
    index_on_both_sides,
    duplicate_number,
    no_number,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_training_on_damaged_data_names_the_file_and_leaves_no_run(
    damage: Damage, own_data: Path, tmp_path: Path
) -> None:
    path, facts = damage(own_data)
    run_root = tmp_path / "run"
    message = message_of(
        "train.py", "-dataset", "TN3K", "-model_name", "unet", "-data_root", own_data, "-run_root", run_root, *SMALL
    )
    assert message.startswith(f"error: {path}: ")
    for fact in facts if damage is duplicate_number else [*facts, LINK]:
        assert fact in message
    assert not list(run_root.glob("run_*"))


def test_check_data_counts_sound_data(data_root: Path, tmp_path: Path) -> None:
    run_root = tmp_path / "run"
    result = run_script("train.py", "-check_data", "-data_root", data_root, "-run_root", run_root, *SMALL)
    assert result.returncode == 0, result.stderr
    # Of TATN's eight pairs the glands are 0, 1, 2, 4, 5, 7, 8, 9; validation and test are on nodules.
    assert result.stdout.splitlines() == [
        "training: 8 nodule images, 8 gland images, all sound",
        "validation: 2 nodule images, all sound",
        "test: 3 nodule images, all sound",
    ]
    assert not run_root.exists()


def test_check_data_reads_test_images_too(own_data: Path, tmp_path: Path) -> None:
    path, facts = cut_in_half(own_data / "tn3k/test-image/0001.jpg")
    data = ("-dataset", "TN3K", "-model_name", "unet", "-data_root", own_data, "-run_root", tmp_path / "run")
    message = message_of("train.py", "-check_data", *data, *SMALL)
    assert message.startswith(f"error: {path}: ")
    assert all(fact in message for fact in [*facts, LINK])


def test_check_data_misses_test_folder(own_data: Path) -> None:
    shutil.rmtree(own_data / "tn3k/test-mask")
    with pytest.raises(UserError, match=rf"{own_data}/tn3k/test-mask: there is no such folder.*{LINK}"):
        TESTING["TN3K"](own_data)


# --- damaged data, the rest in-process ---------------------------------------------------------------------


def read_all(dataset: str, tasks: tuple[str, ...], root: Path) -> None:
    """What train.py does with the data before it trains."""
    items, val = training_samples(dataset, tasks, root, 0)
    Reader(16).check([sample for item in items for sample in item] + val)


@pytest.mark.parametrize(
    "damage", [empty_folder, no_fold_file, no_val, truncated_png], ids=lambda damage: damage.__name__
)
def test_damaged_data(damage: Damage, own_data: Path) -> None:
    path, facts = damage(own_data)
    with pytest.raises(UserError) as caught:
        read_all("TN3K", ("nodule",), own_data)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert all(fact in message for fact in [*facts, LINK])


def test_each_fold_reads_its_own_file(own_data: Path) -> None:
    (own_data / "tn3k/tn3k-trainval-fold3.json").write_text("[]")
    training_samples("TN3K", ("nodule",), own_data, 2)
    with pytest.raises(UserError, match=r"fold3\.json"):
        training_samples("TN3K", ("nodule",), own_data, 3)


def test_damage_in_the_glands_names_tg3k(own_data: Path) -> None:
    (own_data / "tg3k/thyroid-mask/0002.jpg").unlink()
    with pytest.raises(UserError, match=rf"{own_data}/tg3k/thyroid-image/0002.jpg.*Get TG3K again from {LINK}"):
        training_samples("TATN", ("nodule", "gland"), own_data, 0)


def test_missing_ddti_gives_link_and_doi(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/DDTI/image: .*DDTI was expected.*{LINK}.*10\.1117/12\.2073532"):
        TESTING["DDTI"](tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[[1], [2]]",
        '{"train": 3, "val": [0]}',
        '{"train": ["a"], "val": [0]}',
        '{"train": [null], "val": [0]}',
    ],
)
def test_no_such_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fold.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf'{path}: expected {{"train": \[indices\], "val": \[indices\]}}'):
        read_split(path, 10, "TN3K")


@pytest.mark.parametrize("bad", [b"\xff\xfe\x00", b"PK\x03\x04"], ids=["not UTF-8", "zip"])
def test_json_that_is_no_text(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fold.json"
    path.write_bytes(bad)
    with pytest.raises(UserError, match=r"fold\.json: expected"):
        read_split(path, 10, "TN3K")


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        ({"train": [1], "val": [-1]}, "index -1 of 'val' is out of range"),
        ({"train": [], "val": [1]}, "'train' is empty"),
        ({"train": [1], "val": []}, "'val' is empty"),
    ],
)
def test_split_with_wrong_indices(split: dict, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "fold.json"
    path.write_text(json.dumps(split))
    with pytest.raises(UserError, match=rf"{path}: {problem}"):
        read_split(path, 10, "TN3K")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_file_cut_anywhere_is_no_image(suffix: str, tmp_path: Path) -> None:
    mask = write_image(tmp_path / f"mask/1{suffix}", np.ones((24, 32), bool))
    image = write_image(tmp_path / f"image/1{suffix}", np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    whole = image.read_bytes()
    for length in range(0, len(whole) - 24, max(1, len(whole) // 60)):
        image.write_bytes(whole[:length])
        with pytest.raises(UserError, match=re.escape(f"{image}: cannot be read as an image")):
            Sample(image, mask, "nodule", "TN3K").read()


def test_folder_named_like_an_image(tmp_path: Path) -> None:
    (tmp_path / "1.png").mkdir()
    with pytest.raises(UserError, match=r"1\.png: cannot be read as an image"):
        Sample(tmp_path / "1.png", tmp_path / "1.png", "nodule", "TN3K").read()


def test_mask_of_zeros_and_ones_is_told(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image/1.png", np.zeros((8, 8), np.uint8))
    mask = write_image(tmp_path / "mask/1.png", np.eye(8, dtype=np.uint8))
    with pytest.raises(UserError, match=r"mask is empty \(largest value 1; foreground is > 127\)"):
        Sample(image, mask, "nodule", "TN3K").read()


def test_foreign_files_are_no_images(tmp_path: Path) -> None:
    for folder in ("image", "mask"):
        write_image(tmp_path / folder / "1.png", np.eye(8, dtype=bool))
    for name in ("Thumbs.db", ".DS_Store", ".0002.png", "README", "2.txt"):
        (tmp_path / "image" / name).write_text("x")
    samples = list_samples(tmp_path / "image", tmp_path / "mask", "nodule", "TN3K")
    assert [sample.image.name for sample in samples] == ["1.png"]


def test_bad_gland_is_found_before_training(own_data: Path) -> None:
    # Pair 5 goes with gland 7, pair 4 with 5; no pair with 6.
    (own_data / "tg3k/thyroid-mask/0006.jpg").write_bytes(b"")
    read_all("TATN", ("nodule", "gland"), own_data)
    bad = own_data / "tg3k/thyroid-mask/0007.jpg"
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{bad}: cannot be read as an image.*Get TG3K again"):
        read_all("TATN", ("nodule", "gland"), own_data)


# --- the command line --------------------------------------------------------------------------------------


def test_two_task_network_on_one_label(data_root: Path, tmp_path: Path) -> None:
    message = message_of("train.py", "-dataset", "TN3K", "-data_root", data_root, "-run_root", tmp_path / "run")
    assert len(message.splitlines()) == 1
    assert "trfe" in message
    assert "TN3K labels nodules only" in message
    assert "Use -dataset TATN" in message
    assert not (tmp_path / "run").exists()


def test_evaluation_without_its_data(checkpoint: Path, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    message = message_of("eval.py", "-load_path", checkpoint, "-data_root", missing, "-test_dataset", "DDTI")
    assert message.startswith(f"error: {missing / 'DDTI/image'}: ")
    assert LINK in message
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_evaluation_to_a_folder_that_cannot_be(checkpoint: Path, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file/results"
    message = message_of("eval.py", "-load_path", checkpoint, "-data_root", data_root, "-save_dir", target)
    assert f"cannot write {target}" in message
    assert "-save_dir" in message


def test_evaluation_of_nothing() -> None:
    with pytest.raises(UserError, match=r"required: -load_path"):
        eval_parser().parse_args([])


def test_training_to_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run_root = tmp_path / "file/run"
    with pytest.raises(UserError, match=rf"{run_root}/run_0 cannot be made"):
        Run.create(run_root, -1, "unet")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny U-Net as a run keeps it, alone in its folder."""
    path = tmp_path_factory.mktemp("trained") / "unet_best.pth"
    facts = {"model": {"name": "unet", "width": 4, "tasks": ["nodule"]}, "epoch": 1, "best": 0.5}
    args = {"dataset": "TN3K", "input_size": 16, "data_root": "data", "fold": 0}
    save_checkpoint(path, {**facts, "args": args, "state_dict": create_model("unet", 4).state_dict()})
    return path


@pytest.mark.parametrize("typed", ["trfe_plus", "trfe-plus"])
def test_unknown_model_has_the_nearest_name(typed: str) -> None:
    with pytest.raises(UserError, match=rf"'{typed}'.*Did you mean trfeplus\?.*unet, mtnet, trfe, "):
        network(typed)


@pytest.mark.parametrize("parse", [parse_train_args, lambda argv: eval_parser().parse_args(["-load_path", "x", *argv])])
def test_unknown_model_on_the_command_line(parse: Callable[[list[str]], object]) -> None:
    with pytest.raises(UserError, match=r"-model_name.*'unett'.*Did you mean unet\?"):
        parse(["-model_name", "unett"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-fold", "7"], ["-fold", "7", "0, 1, 2, 3, 4"]),
        (["-fold", "x"], ["-fold", "'x'"]),
        (["-dataset", "TN3k"], ["-dataset", "'TN3k'", "TN3K", "TG3K", "TATN", "PHANTOM"]),
        (["-num_classes", "2"], ["-num_classes 2", "use 1"]),
        (["-input_size", "100"], ["-input_size 100", "trfe", "multiples of 16", "96"]),
        (["-input_size", "110"], ["-input_size 110", "multiples of 16", "112"]),
        (["-input_size", "7"], ["-input_size 7", "for example 16"]),
        (["-input_size", "0"], ["-input_size", "at least 1", "got 0"]),
        (["-batch_size", "0"], ["-batch_size", "at least 1", "got 0"]),
        (["-batch_size", "-4"], ["-batch_size", "at least 1", "got -4"]),
        (["-nepochs", "0"], ["-nepochs", "at least 1"]),
        (["-nepochs", "x"], ["-nepochs", "expected a whole number", "got x"]),
        (["-nepochs", "1.5"], ["-nepochs", "expected a whole number", "got 1.5"]),
        (["-num_workers", "-1"], ["-num_workers", "at least 0", "got -1"]),
        (["-seed", "-1"], ["-seed", "at least 0", "got -1"]),
        (["-lr", "-1"], ["-lr", "at least 0", "got -1"]),
        (["-lr", "nan"], ["-lr", "expected a number", "got nan"]),
        (["-momentum", "-1"], ["-momentum", "at least 0"]),
        (["-weight_decay", "inf"], ["-weight_decay", "expected a number", "got inf"]),
        (["-use_test", "2"], ["-use_test", "2"]),
        (["-criterion", "dice"], ["-criterion", "'dice'", "Dice"]),
        (["-mask_rule", "author"], ["-mask_rule", "'author'", "clean", "authors"]),
        (["-epochs", "3"], ["-epochs"]),
        (["-lr"], ["-lr", "expected one argument"]),
        (["-load_path", "nowhere/x.pth"], ["no checkpoint nowhere/x.pth", "correct the path"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_argument_that_cannot_be(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse_train_args(argv)
    for word in words:
        assert word in str(caught.value)


def test_resuming_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"-resume_epoch 3: there is no run under {tmp_path}/run"):
        parse_train_args(["-resume_epoch", "3", "-run_root", str(tmp_path / "run")])
    (tmp_path / "run/run_4").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{tmp_path}/run/run_4 has neither trfe_epoch-3\.pth nor trfe_last\.pth"):
        parse_train_args(["-resume_epoch", "3", "-run_root", str(tmp_path / "run")])


def test_run_number_that_is_taken(tmp_path: Path) -> None:
    folder = Run.create(tmp_path, 2, "unet").folder
    (folder / "log.csv").write_text("kept")
    with pytest.raises(UserError, match=rf"{folder} exists.*-resume_epoch.*-run_id"):
        Run.create(tmp_path, 2, "unet")
    assert (folder / "log.csv").read_text() == "kept"
    assert Run.create(tmp_path, -1, "unet").folder.name == "run_3"


@pytest.mark.parametrize("gpu", ["abc", "0,1", "1.5", ""])
def test_gpu_that_is_no_index(gpu: str) -> None:
    with pytest.raises(UserError, match=rf"-gpu {re.escape(gpu)}: expected the index of a CUDA device"):
        choose_compute(gpu)


def test_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"-gpu 2: this machine has 2 CUDA device"):
        choose_compute("2")


def test_gpu_without_cuda_is_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_compute("0").device.type == "cpu"
    assert "no CUDA device is available here, running on the CPU" in capsys.readouterr().out
    assert choose_compute("cpu").device.type == "cpu"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("dataset", "wrong"), [("TN3K", "TN3K labels nodules only"), ("TG3K", "TG3K labels glands only")]
)
def test_two_task_network_needs_both_labels(dataset: str, wrong: str) -> None:
    with pytest.raises(UserError, match=rf"mtnet trains on nodules and glands; {wrong}.*-dataset TATN"):
        tasks_to_train(dataset, "mtnet", ("nodule", "gland"))


def test_batch_larger_than_the_data(data_root: Path) -> None:
    items, _ = training_samples("TN3K", ("nodule",), data_root, 0)
    args = argparse.Namespace(batch_size=9, seed=0, num_workers=0)
    with pytest.raises(UserError, match=r"-batch_size 9: there are only 8 training items"):
        training_loader(args, items, Reader(16), choose_compute("cpu"), ALONE)
    args.batch_size = 8
    assert len(training_loader(args, items, Reader(16), choose_compute("cpu"), ALONE)) == 1


def test_synthetic_data_where_it_cannot_be_made(tmp_path: Path) -> None:
    foreign = tmp_path / "phantom/notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("kept")
    with pytest.raises(UserError, match=rf"{tmp_path}/phantom.*not a phantom set.*-data_root"):
        TESTING["PHANTOM"](tmp_path)
    assert foreign.read_text() == "kept"
    with pytest.raises(UserError, match=r"notes\.txt/x/phantom.*-data_root"):
        TESTING["PHANTOM"](foreign / "x")


def test_image_of_another_mode_is_read(tmp_path: Path) -> None:
    """Grey, palette and alpha are no mistakes."""
    mask = write_image(tmp_path / "mask/1.png", np.eye(8, dtype=bool))
    grey = Image.fromarray(np.full((8, 8), 90, np.uint8))
    (tmp_path / "image").mkdir()
    for mode in ("L", "P", "LA", "RGBA"):
        grey.convert(mode).save(tmp_path / "image/1.png")
        image, values = Sample(tmp_path / "image/1.png", mask, "nodule", "TN3K").read()
        assert image.shape == (8, 8, 3)
        assert (image == 90).all()
        assert (values == np.eye(8) * 255).all()
