"""What takes minutes: the demo's claim."""

import json
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
