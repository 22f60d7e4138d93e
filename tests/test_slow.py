"""What takes minutes: the demo's claim, and compiling."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import run_script


@pytest.mark.slow
def test_the_demo_finds_nodules(tmp_path: Path) -> None:
    """make demo's commands: on the phantom's test images the mean nodule IoU is above 0.5."""
    sizes = ["-width", "16", "-input_size", "128", "-nepochs", "16"]
    place = ["-data_root", tmp_path / "data", "-run_root", tmp_path / "run"]
    done = run_script("train.py", "-dataset", "PHANTOM", "-model_name", "trfe", *sizes, *place, timeout=1800)
    assert done.returncode == 0, done.stderr
    done = run_script("eval.py", "-load_path", tmp_path / "run/run_0/trfe_best.pth", timeout=600)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/run_0/eval-PHANTOM/summary.json").read_text())
    assert summary["images"] == 60
    assert summary["clean"]["per_image"]["iou"]["mean"] > 0.5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_and_not_compiled_agree(data_root: Path, tmp_path: Path) -> None:
    def run(*flags: str) -> tuple[dict[str, str], float]:
        place, small = tmp_path / "-".join(["run", *flags]), ["-width", 8, "-input_size", 32, "-batch_size", 4]
        common = ["-data_root", data_root, "-precision", "fp32", *flags]
        done = run_script("train.py", *small, "-nepochs", 1, "-run_root", place, *common, timeout=900)
        assert done.returncode == 0, done.stderr
        done = run_script("eval.py", "-load_path", place / "run_0/trfe_best.pth", *common, timeout=900)
        assert done.returncode == 0, done.stderr
        summary = json.loads((place / "run_0/eval-TN3K/summary.json").read_text())
        rows = list(csv.DictReader((place / "run_0/log.csv").open()))
        return rows[0], summary["authors"]["per_image"]["mae"]["mean"]

    (plain, plain_mae), (compiled, compiled_mae) = run(), run("-compile")
    assert float(compiled["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-4)
    assert compiled_mae == pytest.approx(plain_mae, rel=1e-3)
