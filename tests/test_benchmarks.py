"""The benchmark compares like with like, and runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script

from dataloaders import TESTING, training_samples
from dataloaders.datasets import EvalSet, Reader, TrainSet, collate
from model import create_model

sys.path.insert(0, str(ROOT / "benchmarks"))
import bench
import work


@pytest.mark.parametrize("training", [True, False])
def test_the_plain_network_answers_the_same(training: bool) -> None:
    torch.manual_seed(0)
    ours = create_model("trfe", 4).train(training)
    torch.manual_seed(0)
    plain = work.as_released(create_model("trfe", 4).train(training))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(plain(image).values(), ours(image).values(), strict=True):
            torch.testing.assert_close(one, other)


def test_the_plain_batches_hold_the_same_bits(data_root: Path) -> None:
    items, _ = training_samples("TATN", ("nodule", "gland"), data_root, 0)
    data = TrainSet(items, Reader(32), 0)
    entries = [data[0, index] for index in range(4)]
    images, masks = work.plain_collate(entries)
    batch = collate(entries)
    assert torch.equal(images, batch.image)
    assert torch.equal(masks[0::2, None], batch.masks["nodule"])
    assert torch.equal(masks[1::2, None], batch.masks["gland"])


def test_the_plain_test_image_holds_the_same_bits(data_root: Path) -> None:
    images = EvalSet(TESTING["TN3K"](data_root), work.SIZE)
    assert torch.equal(work.plain_test_image(images, 1)[0], images.batch([1])[0])


def test_a_table_shows_medians_and_ratios() -> None:
    results = {"training": {"plain": [{"ms": 8.0, "MiB": 5.0}] * 3, "ours": [{"ms": t, "MiB": 1.0} for t in (2, 9, 4)]}}
    assert list(bench.table_of(results)) == [
        "\n| training | ms | MiB | ratio |",
        "|---|---:|---:|---:|",
        "| plain | 8 | 5 | 1.00 |",
        "| ours | 4 | 1 | 2.00 |",
    ]


def test_the_benchmark_runs(data_root: Path, tmp_path: Path) -> None:
    done = run_script(
        "benchmarks/bench.py", "-only", "data", "-repeat", 1, "-data_root", data_root, "-out", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/bench.json").read_text())["results"]
    assert set(results["data"]) == {"plain", "kept in memory"}
    assert "| data | ms per image | ratio |" in (tmp_path / "out/bench.md").read_text()
