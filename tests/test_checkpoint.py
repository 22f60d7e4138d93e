"""Checkpoint files: written whole or not at all, read without running them, refused with the reason."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import create_model, load_checkpoint
from model.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import UserError


def own_content(name: str = "unet", width: int = 4, tasks: tuple[str, ...] = ("nodule",)) -> dict:
    """What a checkpoint of this project holds, for a network of random weights."""
    net = create_model(name, width, tasks)
    return {"model": {"name": name, "width": width, "tasks": list(tasks)}, "state_dict": net.state_dict()}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "trfe_best.pth"


@pytest.fixture
def previous(path) -> bytes:
    """A checkpoint that is there already, as bytes."""
    save_checkpoint(path, {"epoch": 1, "state_dict": {"weight": torch.ones(3)}})
    return path.read_bytes()


def released_unet(width: int = 64, prefix: str = "") -> dict[str, Tensor]:
    """A state dict under the release's names; its zeros take no room, since one number stands for all of a tensor."""
    state = {}

    def layer(name: str, *shape: int, bias: int) -> None:
        state[f"{prefix}{name}.weight"] = torch.zeros(1).expand(*shape)
        state[f"{prefix}{name}.bias"] = torch.zeros(1).expand(bias)

    def double_conv(name: str, c_in: int, c_out: int) -> None:
        for index, channels in ((0, c_in), (3, c_out)):
            layer(f"{name}.conv.{index}", c_out, channels, 3, 3, bias=c_out)
            layer(f"{name}.conv.{index + 1}", c_out, bias=c_out)
            for statistic in ("running_mean", "running_var"):
                state[f"{prefix}{name}.conv.{index + 1}.{statistic}"] = torch.ones(1).expand(c_out)
            state[f"{prefix}{name}.conv.{index + 1}.num_batches_tracked"] = torch.tensor(0)

    for number, c in enumerate((1, 2, 4, 8, 16), start=1):
        double_conv(f"conv{number}", 3 if number == 1 else c * width // 2, c * width)
    for number, c in enumerate((8, 4, 2, 1), start=6):
        layer(f"up{number}", 2 * c * width, c * width, 2, 2, bias=c * width)
        double_conv(f"conv{number}", 2 * c * width, c * width)
    layer("conv10", 1, width, 1, 1, bias=1)
    return state


# --- writing -----------------------------------------------------------------------------------------------


def test_what_was_saved_is_read_back(path):
    content = {
        "model": {"name": "unet", "width": 4, "tasks": ["nodule"]},
        "state_dict": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.tensor([0.5])}}, "param_groups": [{"lr": 1e-3}]},
        "args": {"lr": 0.001, "seed": 1234, "pretrain": None, "flag": True},
        "epoch": 3,
    }
    save_checkpoint(path, content)
    read = read_checkpoint(str(path))
    assert read["path"] == path
    assert {name: read[name] for name in ("model", "args", "epoch")} == {
        name: content[name] for name in ("model", "args", "epoch")
    }
    assert read["state_dict"]["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read["state_dict"]["count"].item() == 7
    assert read["optimizer"]["state"][0]["momentum_buffer"].tolist() == [0.5]
    assert os.listdir(path.parent) == [path.name]


def test_saving_replaces_the_previous_file(path, previous):
    save_checkpoint(path, {"epoch": 2, "state_dict": {"weight": torch.zeros(1)}})
    assert read_checkpoint(path)["epoch"] == 2
    assert os.listdir(path.parent) == [path.name]


def half_written(error: BaseException):
    """A torch.save that fails in its midst."""

    def save(content: dict, file) -> None:
        if isinstance(file, str | Path):
            Path(file).write_bytes(b"half a check")
        else:
            file.write(b"half a check")
        raise error

    return save


def fail(error: BaseException):
    def function(*args) -> None:
        raise error

    return function


def assert_untouched(path: Path, previous: bytes) -> None:
    assert path.read_bytes() == previous
    assert os.listdir(path.parent) == [path.name], "something was left behind"


def test_a_full_disk_leaves_the_previous_file(path, previous, monkeypatch):
    monkeypatch.setattr(torch, "save", half_written(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=f"cannot write {path}.*No space left.*untouched"):
        save_checkpoint(path, {"epoch": 2})
    assert_untouched(path, previous)


def test_a_failing_rename_leaves_the_previous_file(path, previous, monkeypatch):
    monkeypatch.setattr(os, "replace", fail(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=f"cannot write {path}.*Permission denied"):
        save_checkpoint(path, {"epoch": 2})
    assert_untouched(path, previous)


def test_an_interruption_leaves_the_previous_file(path, previous, monkeypatch):
    monkeypatch.setattr(torch, "save", half_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"epoch": 2})
    assert_untouched(path, previous)


def test_the_file_is_on_the_disk_before_it_takes_the_name(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    save_checkpoint(path, {"epoch": 2})
    assert calls == ["fsync", "replace"]


# A real limit on the size of files, so that PyTorch's own writer meets it: in the midst of one tensor, and between
# many small ones.
@pytest.mark.parametrize(("tensors", "numbers"), [(1, 100_000), (40, 1000)])
def test_a_disk_that_is_really_full(path, previous, tensors, numbers):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}"):
            save_checkpoint(path, {"state_dict": {str(index): torch.rand(numbers) for index in range(tensors)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(path, previous)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere"):
        save_checkpoint(tmp_path / "nowhere" / "unet.pth", {"epoch": 2})


# --- reading what is no checkpoint -------------------------------------------------------------------------


def test_a_missing_file(path):
    with pytest.raises(UserError, match=f"there is no checkpoint {path}.*correct the path"):
        load_checkpoint(path)


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match=f"there is no checkpoint {tmp_path}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"this is text\n", b"epoch,loss\n1,0.5\n", b"Git LFS\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", bytes(100)],
    ids=["empty", "text", "csv", "words", "png", "zip header", "zeros"],
)
def test_a_file_that_is_no_checkpoint(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} (is damaged or no checkpoint|holds something other)"):
        load_checkpoint(path, "unet")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file(path, share, zipped):
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=f"{path} (is damaged or no checkpoint|holds something other)"):
        load_checkpoint(path, "unet")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(path, tmp_path, zipped):
    sprung = tmp_path / "sprung"
    content = {"weight": torch.ones(2), "trap": Trap(sprung)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"{path} holds something other than plain tensors.*not loaded"):
        load_checkpoint(path, "unet")
    assert not sprung.exists()
    # The trap works: who loads it without care springs it.
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert sprung.exists()


@pytest.mark.parametrize(
    "content", [{}, [1, 2], torch.ones(3), {"state_dict": {"a": torch.ones(1)}}, {"format": "another", "a": 1}]
)
def test_plain_values_that_are_no_checkpoint(path, content):
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path} is neither a checkpoint of this project nor a released"):
        load_checkpoint(path, "unet")


# --- checkpoints of this project ---------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", [None, "unet"])
@torch.inference_mode()
def test_a_checkpoint_of_ours_loads_by_itself(path, model_name):
    torch.manual_seed(3)
    original = create_model("unet", 4, ("gland",))
    image = torch.randn(2, 3, 16, 16)
    original.train()(image)  # moves the running statistics away from where a new network has them
    model = {"name": "unet", "width": 4, "tasks": ["gland"]}
    save_checkpoint(path, {"model": model, "state_dict": original.state_dict()})
    loaded = load_checkpoint(path, model_name)
    assert not loaded.training
    assert torch.equal(loaded(image)["gland"], original.eval()(image)["gland"])


def test_a_checkpoint_of_ours_under_another_name(path):
    save_checkpoint(path, own_content("unet"))
    with pytest.raises(UserError, match=f"{path} holds unet, not trfe: leave -model_name out"):
        load_checkpoint(path, "trfe")


def test_a_missing_parameter_is_named(path):
    content = own_content()
    del content["state_dict"]["heads.nodule.bias"]
    save_checkpoint(path, content)
    with pytest.raises(UserError, match=rf"{path} does not fit.*lacks heads\.nodule\.bias"):
        load_checkpoint(path)


def test_an_unknown_parameter_is_named(path):
    content = own_content()
    content["state_dict"]["heads.thyroid.bias"] = torch.zeros(1)
    save_checkpoint(path, content)
    with pytest.raises(UserError, match=rf"{path} does not fit.*unknown heads\.thyroid\.bias"):
        load_checkpoint(path)


def test_a_parameter_of_another_shape_is_named(path):
    content = own_content()
    content["state_dict"]["heads.nodule.weight"] = torch.zeros(1, 5, 1, 1)
    save_checkpoint(path, content)
    with pytest.raises(UserError, match=r"has heads\.nodule\.weight \(1, 5, 1, 1\) instead of \(1, 4, 1, 1\)"):
        load_checkpoint(path)


def test_only_the_first_of_many_are_named(path):
    content = own_content()
    missing = [name for name in content["state_dict"] if name.startswith("encoder.stages.0.")]
    for name in missing:
        del content["state_dict"][name]
    save_checkpoint(path, content)
    # A double convolution has 2 * (2 + 5) = 14 tensors; four are named.
    with pytest.raises(UserError, match=r"lacks encoder.* and 10 more") as caught:
        load_checkpoint(path)
    assert sum(name in str(caught.value) for name in missing) == 4


# --- released state dicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "DataParallel"])
def test_a_released_file_loads(path, prefix):
    state = released_unet(prefix=prefix)
    # One number in each kind of layer shows that it arrives where it belongs.
    marked = {
        "conv1.conv.0.bias": "encoder.stages.0.0.bias",
        "conv5.conv.4.running_mean": "encoder.stages.4.4.running_mean",
        "up6.bias": "decoders.nodule.ups.0.bias",
        "conv9.conv.3.bias": "decoders.nodule.convs.3.3.bias",
        "conv10.bias": "heads.nodule.bias",
    }
    for number, name in enumerate(marked, start=1):
        state[prefix + name] = torch.full(state[prefix + name].shape, float(number))
    torch.save(state, path)
    net = load_checkpoint(path, "unet")
    assert not net.training
    loaded = net.state_dict()
    for number, name in enumerate(marked.values(), start=1):
        assert torch.all(loaded[name] == number), name
    assert torch.all(loaded["decoders.nodule.ups.1.bias"] == 0)


def test_a_released_file_does_not_know_its_network(path):
    torch.save(released_unet(), path)
    with pytest.raises(UserError, match=f"{path} does not know which model it holds.*-model_name, one of unet, mtnet"):
        load_checkpoint(path)


def test_layers_that_are_left_out_are_logged(path, caplog):
    state = released_unet()
    for name in ("up6_align.0.weight", "up6_align.0.bias", "reduction6.weight"):
        state[name] = torch.zeros(1)
    torch.save(state, path)
    with caplog.at_level(logging.INFO, logger="model"):
        load_checkpoint(path, "unet")
    # A layer is named once, not once for its weight and once for its bias.
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: left out layers that no forward pass uses: up6_align.0, reduction6"
    ]


def test_nothing_is_logged_where_nothing_is_left_out(path, caplog):
    torch.save(released_unet(), path)
    with caplog.at_level(logging.INFO, logger="model"):
        load_checkpoint(path, "unet")
    assert not caplog.records


def test_a_released_file_of_another_network_names_the_unknown_layer(path):
    # trfeplus has a layer finalconv1 that the plain family lacks.
    torch.save({**released_unet(), "finalconv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=rf"{path}: no layer .* is called finalconv1\.weight.*-model_name right"):
        load_checkpoint(path, "unet")


def test_a_released_file_without_the_gland_decoder_is_no_mtnet(path):
    torch.save(released_unet(), path)
    with pytest.raises(UserError, match=r"does not fit.*lacks decoders\.gland\.ups\.0\.weight.* and \d+ more"):
        load_checkpoint(path, "mtnet")


def test_a_released_file_of_another_width_names_the_shapes(path):
    torch.save(released_unet(width=32), path)
    with pytest.raises(UserError, match=r"stages\.0\.0\.weight \(32, 3, 3, 3\) instead of \(64, 3, 3, 3\)"):
        load_checkpoint(path, "unet")


def test_a_foreign_dict_of_tensors_is_refused(path):
    torch.save({"layer1.0.weight": torch.ones(2), "fc.bias": torch.ones(2)}, path)
    with pytest.raises(UserError, match=rf"{path}: no layer of this network is called layer1\.0\.weight, fc\.bias"):
        load_checkpoint(path, "unet")


def test_a_network_that_was_never_released(path):
    torch.save(released_unet(), path)
    with pytest.raises(UserError, match="the release has no trfe-b"):
        load_checkpoint(path, "trfe-b")


def test_a_model_name_that_does_not_exist(path):
    torch.save(released_unet(), path)
    with pytest.raises(UserError, match=r"no model named 'unett'\. Did you mean unet\?"):
        load_checkpoint(path, "unett")
