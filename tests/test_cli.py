"""The authors' commands from start to end on a tiny data set, through the real command lines."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script
from PIL import Image

import train
from model import load_checkpoint, read_checkpoint

TINY = ["-width", "4", "-input_size", "32", "-batch_size", "2", "-gpu", "cpu", "-precision", "fp32"]


def run_train(monkeypatch, *args) -> None:
    """train.py in this process, which spares the import of torch."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
    train.main()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = (read_checkpoint(path)["state_dict"] for path in (a, b))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory) -> tuple[Path, str]:
    """A run folder made by the authors' training command (with sizes for a test), and what it printed."""
    root = tmp_path_factory.mktemp("trained")
    sizes = ["-width", "4", "-input_size", "32", "-batch_size", "2", "-nepochs", "2", "-log_every", "1"]
    place = ["-data_root", data_root, "-run_root", root / "run"]
    done = run_script("train.py", "-fold", "0", "-model_name", "trfe", "-dataset", "TATN", "-gpu", "0", *sizes, *place)
    assert done.returncode == 0, done.stderr
    return root / "run" / "run_0", done.stdout


def test_training_leaves_a_run_folder_that_explains_itself(trained):
    folder, _ = trained
    arguments = json.loads((folder / "args.json").read_text())
    assert arguments["arguments"]["model_name"] == "trfe"
    assert arguments["arguments"]["batch_size"] == 2
    assert arguments["arguments"]["lr"] == 1e-3
    assert arguments["seed"] == 1234
    assert arguments["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"git_commit", "device", "bf16", "command"} <= arguments.keys()

    log = rows(folder / "log.csv")
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert list(log[0]) == ["epoch", "lr", "nodule", "gland", "loss", "val_iou", "val_dice"]
    for row in log:
        assert float(row["loss"]) == pytest.approx(float(row["nodule"]) + float(row["gland"]), rel=1e-6)
    assert (folder / "trfe_last.pth").is_file()
    assert (folder / "trfe_best.pth").is_file()


def test_tensorboard_holds_losses_validation_and_pictures(trained):
    # The event file's records are protocol buffers; their tags are plain text in it.
    content = b"".join(path.read_bytes() for path in trained[0].glob("events.out.tfevents.*"))
    for tag in (b"batch/loss", b"epoch/lr", b"epoch/val_iou", b"validation"):
        assert tag in content


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only without CUDA")
def test_without_cuda_it_says_so_in_one_line(trained):
    assert trained[1].count("no CUDA device is available") == 1


def test_the_best_checkpoint_is_the_epoch_with_the_best_validation(trained):
    folder, _ = trained
    scores = [float(row["val_iou"]) for row in rows(folder / "log.csv")]
    best = read_checkpoint(folder / "trfe_best.pth")
    assert best["best"] == pytest.approx(max(scores))
    assert best["epoch"] == 1 + int(np.argmax(scores))
    assert "optimizer" not in best


def test_evaluation_needs_only_the_checkpoint(trained):
    folder, _ = trained
    done = run_script("eval.py", "-load_path", folder / "trfe_best.pth")
    assert done.returncode == 0, done.stderr
    assert "Clean protocol" in done.stdout
    assert "Authors' protocol" in done.stdout
    assert "no published figure compares" in done.stdout

    out = folder / "eval-TN3K"
    table, summary = rows(out / "per_image.csv"), json.loads((out / "summary.json").read_text())
    assert summary["images"] == len(table) == 3
    for name in ("iou", "dice", "authors_iou", "authors_hd"):
        protocol, metric = ("authors", name[8:]) if name.startswith("authors_") else ("clean", name)
        mean = np.mean([float(row[name]) for row in table])
        assert summary[protocol]["per_image"][metric]["mean"] == pytest.approx(mean)

    # The written masks are what was scored: recount one image's IoU from the files.
    row = table[0]
    truth = np.array(Image.open(next(iter(sorted((Path(summary_root(folder)) / "tn3k/test-mask").iterdir()))))) > 127
    written = np.array(Image.open(out / "masks" / f"{Path(row['name']).stem}.png")) > 127
    assert (truth & written).sum() / (truth | written).sum() == pytest.approx(float(row["iou"]))
    overlay = np.array(Image.open(out / "overlays" / f"{Path(row['name']).stem}.png"))
    assert min(overlay.shape[:2]) >= 400


def summary_root(folder: Path) -> str:
    return json.loads((folder / "args.json").read_text())["arguments"]["data_root"]


def test_eval_takes_a_released_state_dict(trained, tmp_path):
    # A file as the authors' training writes it: bare names, no word of its model. Width 64 as released.
    shared = pytest.importorskip("conftest").SHARED / "parity"
    if not shared.is_dir():
        pytest.skip("the released parameter names are not here")
    sys.path.insert(0, str(shared))
    import fill

    torch.save(fill.state_dict(json.loads((shared / "mtnet.keys.json").read_text())), tmp_path / "released.pth")
    args = ["-load_path", tmp_path / "released.pth", "-data_root", summary_root(trained[0]), "-input_size", "32"]
    done = run_script("eval.py", *args, "-model_name", "mtnet", "--save_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").is_file()
    assert run_script("eval.py", *args).returncode == 2


@pytest.mark.parametrize(("model", "dataset", "workers"), [("trfeplus", "TATN", 2), ("unet", "TN3K", 0)])
def test_resume_is_exact(monkeypatch, data_root, tmp_path, model, dataset, workers):
    # Epochs 2 and 4 are in the middle of a step of the learning rate: the momentum must come back, too. Dropout
    # (trfeplus), the order and the flips must draw what the whole run drew.
    common = ["-model_name", model, "-dataset", dataset, "-data_root", data_root, *TINY, "-update_lr_every", "3"]
    root, again = tmp_path / "whole", tmp_path / "again"
    run_train(monkeypatch, *common, "-nepochs", "4", "-save_every", "2", "-run_root", root, "-num_workers", workers)
    folder = again / "run_0"
    folder.mkdir(parents=True)
    shutil.copy(root / "run_0" / f"{model}_epoch-2.pth", folder / f"{model}_last.pth")
    # What the interrupted run wrote after its last whole epoch must go.
    shutil.copy(root / "run_0" / "log.csv", folder / "log.csv")

    run_train(monkeypatch, "-load_path", folder / f"{model}_last.pth", "-num_workers", 0)
    assert_same_weights(root / "run_0" / f"{model}_last.pth", folder / f"{model}_last.pth")
    assert (folder / "log.csv").read_text() == (root / "run_0" / "log.csv").read_text()
    states = [read_checkpoint(path / f"{model}_last.pth") for path in (root / "run_0", folder)]
    assert states[0]["best"] == states[1]["best"]


def test_resume_epoch_goes_on_from_a_kept_epoch(monkeypatch, data_root, tmp_path, capsys):
    args = ["-model_name", "unet", "-dataset", "TN3K", "-data_root", data_root, *TINY, "-run_root", tmp_path]
    run_train(monkeypatch, *args, "-nepochs", "2", "-save_every", "1")
    before = read_checkpoint(tmp_path / "run_0" / "unet_last.pth")
    run_train(monkeypatch, *args, "-nepochs", "2", "-resume_epoch", "1")
    assert not (tmp_path / "run_1").exists()
    after = read_checkpoint(tmp_path / "run_0" / "unet_last.pth")
    assert after["epoch"] == 2
    for name, value in before["state_dict"].items():
        assert torch.equal(value, after["state_dict"][name])


def test_pretraining_on_glands_starts_the_nodule_network(monkeypatch, data_root, tmp_path, capsys):
    args = ["-model_name", "unet", "-data_root", data_root, *TINY, "-run_root", tmp_path, "-nepochs", "1"]
    run_train(monkeypatch, *args, "-dataset", "TG3K")
    assert load_checkpoint(tmp_path / "run_0" / "unet_best.pth").tasks == ("gland",)
    run_train(monkeypatch, *args, "-dataset", "TN3K", "-pretrain", "THYROID", "-lr", "0")
    # At a learning rate of 0 the weights stay where they started: at the gland network's.
    glands = read_checkpoint(tmp_path / "run_0" / "unet_best.pth")["state_dict"]
    nodules = read_checkpoint(tmp_path / "run_1" / "unet_last.pth")["state_dict"]
    assert torch.equal(glands["heads.gland.weight"], nodules["heads.nodule.weight"])
    assert "136 of 136 tensors" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_the_files(data_root, tmp_path):
    args = ["-model_name", "unet", "-dataset", "TN3K", "-data_root", data_root, *TINY, "-lr", "1e38"]
    done = run_script("train.py", *args, "-nepochs", "3", "-run_root", tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "trainval-image/" in done.stderr


def test_ctrl_c_keeps_the_last_epoch(data_root, tmp_path):
    args = ["-model_name", "unet", "-dataset", "TN3K", "-data_root", str(data_root), *TINY, "-nepochs", "100000"]
    command = [sys.executable, "train.py", *args, "-run_root", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    last = tmp_path / "run_0" / "unet_last.pth"
    assert f"python train.py -load_path {last}" in rest
    assert read_checkpoint(last)["epoch"] >= 2
    assert len(rows(last.parent / "log.csv")) >= 2
