"""Several processes: what they learn and find is what one process does."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from conftest import ROOT, run_script
from torch import nn
from torch.utils.data import DataLoader

from dataloaders import training_samples
from dataloaders.datasets import Batch, EpochBatches, Reader, TrainSet, ValidationSet, collate
from model import create_model
from utils.device import Compute
from utils.engine import train_one_epoch, validate
from utils.losses import soft_dice
from utils.parallel import ALONE, Ranks, processes, synchronise_batch_norm

CPU = Compute(torch.device("cpu"))


def exact(batch: Batch) -> Batch:
    """The batch in float64, in which sums hardly depend on their order."""
    masks = {task: mask.double() for task, mask in batch.masks.items()}
    return replace(batch, image=batch.image.double(), masks=masks, share=batch.share.double())


def learn(ranks: Ranks, data_root: Path, model: str, accumulate: int) -> dict:
    """Two epochs of two batches of four items: losses of the steps, the weights' sum, validation."""
    torch.manual_seed(1)
    net = create_model(model, 4).double()
    if ranks.world > 1:
        net = synchronise_batch_norm(net, CPU.device)
    items, val = training_samples("TATN" if len(net.tasks) > 1 else "TN3K", net.tasks, data_root, 0)
    reader = Reader(16)
    sampler = EpochBatches(len(items), 4, 7, ranks.rank, ranks.world)
    data = DataLoader(TrainSet(items, reader, 7), batch_sampler=sampler, collate_fn=collate)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    forward, steps = ranks.wrapped(net, CPU.device), []

    def note(step: int, losses: dict[str, float]) -> None:
        steps.append(losses)

    for _ in range(2):
        batches = [exact(batch) for batch in data]
        train_one_epoch(forward, batches, soft_dice, optimizer, CPU, 0.5, accumulate, note, ranks)
    state = {name: float(value.double().sum()) for name, value in net.state_dict().items()}
    scores = validate(net.float(), ValidationSet(val, reader), CPU, ranks)
    return {"steps": steps, "state": state, "scores": scores}


def learn_as(rank: int, world: int, port: int, out: Path, *args: object) -> None:
    """`learn` as one of several processes; the first writes what came out."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with processes() as ranks:
        result = learn(ranks, *args)
        print("said by the first alone")
        if ranks.writes:
            out.write_text(json.dumps(result))


@pytest.mark.parametrize(("model", "accumulate"), [("trfe", 1), ("trfe2", 2), ("unet", 1)])
def test_two_processes_learn_what_one_does(
    model: str, accumulate: int, data_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With synchronised BatchNorm: sums (two tasks) and means (one) of losses, with and without -naver_grad."""
    alone = learn(ALONE, data_root, model, accumulate)
    port = 29500 + os.getpid() % 1000
    out = tmp_path / "result.json"
    torch.multiprocessing.spawn(learn_as, (2, port, out, data_root, model, accumulate), nprocs=2)
    joined = json.loads(out.read_text())
    assert len(alone["steps"]) == 4
    for one, two in zip(alone["steps"], joined["steps"], strict=True):
        assert two == pytest.approx(one, rel=1e-9)
    # Running statistics are among the state.
    assert joined["state"] == pytest.approx(alone["state"], rel=1e-6, abs=1e-9)
    assert joined["scores"] == pytest.approx(alone["scores"], abs=1e-6)
    assert capfd.readouterr().out.count("said by the first alone") == 1


def test_parts_join_in_order() -> None:
    assert [list(Ranks(rank, 3).part(range(8))) for rank in range(3)] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert ALONE.joined([3, 1, 2]) == [3, 1, 2]


def test_a_process_computes_on_the_device_of_its_own_number() -> None:
    assert Ranks(3, 4, 1).gpu("0") == "1"
    assert Ranks(3, 4, 1).gpu("cpu") == "cpu"
    assert ALONE.gpu("2") == "2"


def test_synchronising_keeps_names_and_answers() -> None:
    net = create_model("trfeplus", 8).eval()
    names, image = list(net.state_dict()), torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        before = net(image)["size"]
        assert torch.equal(synchronise_batch_norm(net, CPU.device)(image)["size"], before)
    assert list(net.state_dict()) == names
    assert any(isinstance(module, nn.BatchNorm1d) for module in net.modules())


# --- the command line --------------------------------------------------------------------------------------

SMALL = ["-width", "4", "-input_size", "16", "-batch_size", "4", "-save_every", "0", "-gpu", "cpu"]


def torchrun(*command: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def children(parent: int) -> list[int]:
    """Process numbers of the scripts that torchrun runs, in the order of their ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        # Any process may end while it is looked at.
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and f"PPid:\t{parent}\n" in (entry / "status").read_text():
                found.append(int(entry.name))
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="finds processes by /proc")
def test_a_process_that_dies_ends_the_run_which_goes_on_from_its_last_epoch(data_root: Path, tmp_path: Path) -> None:
    run = torchrun("train.py", "-data_root", data_root, *SMALL, "-nepochs", 500, "-run_root", tmp_path)
    last = tmp_path / "run_0/trfe_last.pth"
    until = time.monotonic() + 60
    while not last.exists() and time.monotonic() < until and run.poll() is None:
        time.sleep(0.05)
    os.kill(children(run.pid)[-1], signal.SIGKILL)
    said = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "SIGKILL" in said
    done = len(list(csv.reader((tmp_path / "run_0/log.csv").open()))) - 1
    assert 1 <= done < 500

    resumed = run_script("train.py", "-load_path", last, "-nepochs", done + 1)
    assert resumed.returncode == 0, resumed.stderr
    assert f"epoch {done + 1}/{done + 1}" in resumed.stdout
    assert len(list(csv.reader((tmp_path / "run_0/log.csv").open()))) == done + 2


def test_two_processes_evaluate_what_one_does(data_root: Path, tmp_path: Path) -> None:
    trained = run_script("train.py", "-data_root", data_root, *SMALL, "-nepochs", 1, "-run_root", tmp_path)
    assert trained.returncode == 0, trained.stderr
    command = ["-load_path", tmp_path / "run_0/trfe_best.pth", "-batch_size", 1, "-gpu", "cpu", "-save_dir"]
    one = run_script("eval.py", *command, tmp_path / "one")
    assert one.returncode == 0, one.stderr
    two = torchrun("eval.py", *command, tmp_path / "two")
    said = two.communicate(timeout=60)[0]
    assert two.returncode == 0, said
    assert said.count("Clean protocol") == 1
    assert (tmp_path / "one/per_image.csv").read_text() == (tmp_path / "two/per_image.csv").read_text()
    assert len(list((tmp_path / "two/overlays").iterdir())) == 3


def test_a_batch_that_cannot_be_split_is_refused(data_root: Path, tmp_path: Path) -> None:
    run = torchrun("train.py", "-data_root", data_root, *SMALL, "-batch_size", 3, "-run_root", tmp_path)
    said = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "-batch_size 3 cannot be split over 2 processes" in said
    assert not list(tmp_path.iterdir())
