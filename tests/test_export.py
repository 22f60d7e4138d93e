"""export.py, and the files it writes in the place of a checkpoint."""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from torch import nn

import eval as evaluation
import export
from export import Comparison
from model import ExportedNetwork, create_model, formats, list_models, load_checkpoint, read_checkpoint
from model.checkpoint import save_checkpoint
from model.exported import FORMAT
from model.formats import FORMATS
from utils.device import Compute
from utils.errors import UserError
from utils.options import parse_train_args
from utils.run import pretrained_weights

SIZE = 32
BOTH = list(FORMATS)
METADATA = json.dumps({"format": FORMAT, "model": {"name": "trfe", "tasks": []}, "input_size": SIZE})
SUFFIXES = {name: entry.suffixes[0] for name, entry in FORMATS.items()}


def network(name: str, seed: int = 0, **settings) -> nn.Module:
    """A small network in eval mode whose BatchNorms have seen something."""
    torch.manual_seed(seed)
    net = create_model(name, 4, **settings)
    with torch.no_grad():
        net(torch.randn(4, 3, SIZE, SIZE))
    return net.eval()


def save(path: Path, net: nn.Module, data_root: Path, name: str = "trfe") -> Path:
    """A checkpoint as train.py writes it."""
    facts = {"model": {"name": name, "width": 4, "tasks": list(net.tasks)}, "epoch": 7}
    args = {"dataset": "TATN", "data_root": str(data_root), "input_size": SIZE, "fold": 0, "width": 4}
    save_checkpoint(path, {**facts, "args": args, "state_dict": net.state_dict()})
    return path


def run_main(monkeypatch, module, *args) -> None:
    """A script in this process, which spares the imports."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, args)])
    module.main()


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def checkpoint(data_root, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint") / "trfe_best.pth", network("trfe"), data_root)


@pytest.fixture(scope="module", params=BOTH)
def exported(request, checkpoint) -> tuple[Path, str]:
    """A file beside the checkpoint, and what export.py printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        run_main(monkeypatch, export, "-load_path", checkpoint, "-format", request.param)
    return checkpoint.with_suffix(SUFFIXES[request.param]), printed.getvalue()


@pytest.fixture
def own(exported, tmp_path) -> Path:
    """A copy of an exported network for one test to damage."""
    for file in exported[0].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / exported[0].name


@pytest.fixture(scope="module")
def graph():
    """The checkpoint's network as ONNX."""
    return formats.to_onnx(network("trfe"), SIZE)


@pytest.fixture
def converted(monkeypatch, graph) -> None:
    """Whatever is exported is taken to be converted to this already, for tests of what comes after."""
    monkeypatch.setattr(formats, "to_onnx", lambda *_: copy.deepcopy(graph))


@pytest.mark.parametrize("name", list_models())
def test_every_network_answers_as_in_pytorch(monkeypatch, tmp_path, name):
    net = network(name)
    model = formats.to_onnx(net, SIZE)
    monkeypatch.setattr(formats, "to_onnx", lambda *_: model)
    for target in FORMATS.values():
        path = tmp_path / f"net{target.suffixes[0]}"
        target.write(target.convert(net, SIZE, []), path, METADATA)
        loaded = load_checkpoint(path)
        for batch in (1, 3):
            images = torch.randn(batch, 3, SIZE, SIZE)
            with torch.no_grad():
                expected, got = net(images), loaded(images)
            assert list(got) == list(expected)
            for output, values in expected.items():
                assert got[output].dtype == torch.float32
                torch.testing.assert_close(got[output], values, rtol=1e-4, atol=1e-4)


def test_export_says_how_far_it_is_from_pytorch(exported, checkpoint):
    path, printed = exported
    assert "compared with PyTorch on 3 test images of TN3K: largest difference" in printed
    assert "(+0.0000)" in printed
    assert f"python eval.py -load_path {path}" in printed
    # Nothing but the files of the exports is left beside the checkpoint.
    assert {file.suffix for file in path.parent.iterdir() if file.is_file()} <= {".pth", ".onnx", ".xml", ".bin"}
    assert not list(path.parent.glob(".*"))


def test_evaluation_runs_it_like_the_checkpoint(monkeypatch, exported, checkpoint, tmp_path):
    args = ["-gpu", "cpu", "-precision", "fp32", "-save_dir"]
    done = run_script("eval.py", "-load_path", exported[0], *args, tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    run_main(monkeypatch, evaluation, "-load_path", checkpoint, *args, tmp_path / "pytorch")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("exported", "pytorch")]
    assert summaries[0]["checkpoint"] == str(exported[0])
    for protocol in ("clean", "authors"):
        ious = [summary[protocol]["per_image"]["iou"]["mean"] for summary in summaries]
        assert ious[0] == pytest.approx(ious[1], abs=1e-4)
    same = ("model", "epoch", "test_dataset", "fold", "input_size", "training")
    assert [summaries[0][key] for key in same] == [summaries[1][key] for key in same]


def test_the_file_says_what_it_holds(exported, checkpoint, data_root):
    content = read_checkpoint(exported[0])
    assert content["model"] == {"name": "trfe", "width": 4, "tasks": ["nodule", "gland"]}
    assert (content["input_size"], content["epoch"], content["int8"]) == (SIZE, 7, False)
    assert content["mean"] == [0.485, 0.456, 0.406]
    assert content["std"] == [0.229, 0.224, 0.225]
    assert content["args"]["data_root"] == str(data_root)
    assert content["version"] == "0.1.0"
    assert content["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    # The program's own folder, which PyTorch's exporter notes for every layer, is nobody's business.
    assert str(ROOT).encode() not in exported[0].read_bytes()


def test_several_threads_may_call_it_at_once(exported):
    net = load_checkpoint(exported[0])
    batches = [torch.randn(1 + k % 3, 3, SIZE, SIZE) for k in range(24)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(net, batches))
    for images, outputs in zip(batches, together, strict=True):
        alone = net(images)
        for name, values in outputs.items():
            torch.testing.assert_close(values, alone[name], rtol=1e-5, atol=1e-5)


def test_precision_follows_the_images(monkeypatch, exported):
    net = load_checkpoint(exported[0])
    target = FORMATS["openvino" if exported[0].suffix == ".xml" else "onnx"]
    started, start = [], target.start
    monkeypatch.setattr(target, "start", lambda path, *how: started.append(how) or start(path, *how))
    images = torch.randn(2, 3, SIZE, SIZE)
    expected = net(images)["nodule"]
    rounded = net(images.bfloat16())["nodule"]
    assert net(images.double())["nodule"].equal(expected)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0.1, atol=0.1)
    # OpenVINO starts anew for another number of images, too.
    assert started == ([(False, 2), (True, 2)] if exported[0].suffix == ".xml" else [(False, None)])
    assert net(images[:1])["nodule"].shape == (1, 1, SIZE, SIZE)
    assert started[-1] == ((False, 1) if exported[0].suffix == ".xml" else (False, None))
    assert Compute(torch.device("cuda"), True, True).limited_to(net) == Compute(
        torch.device("cpu"), exported[0].suffix == ".xml"
    )


def test_a_copy_of_it_runs(exported):
    net = load_checkpoint(exported[0])
    images = torch.randn(1, 3, SIZE, SIZE)
    assert copy.deepcopy(net)(images)["nodule"].equal(net(images)["nodule"])
    assert copy.deepcopy(net)(images)["nodule"].equal(net(images)["nodule"])


@pytest.mark.parametrize("shape", [(1, 3, 48, 48), (1, 3, SIZE, 48), (1, 1, SIZE, SIZE), (3, SIZE, SIZE)])
def test_images_of_another_shape_are_refused(exported, shape):
    with pytest.raises(UserError, match=f"{SIZE}, {SIZE}"):
        load_checkpoint(exported[0])(torch.zeros(shape))


def test_evaluation_at_another_size_is_refused(monkeypatch, exported, tmp_path):
    with pytest.raises(UserError, match=f"-input_size 48: this file was exported for {SIZE}"):
        run_main(monkeypatch, evaluation, "-load_path", exported[0], "-input_size", 48, "-save_dir", tmp_path)


def test_another_model_name_is_refused(exported):
    with pytest.raises(UserError, match="holds trfe, not unet"):
        load_checkpoint(exported[0], "unet")
    assert isinstance(load_checkpoint(exported[0], "trfe"), ExportedNetwork)


def test_it_can_be_neither_trained_nor_exported(monkeypatch, exported):
    refusal = "neither trained nor exported again"
    with pytest.raises(UserError, match=refusal):
        parse_train_args(["-load_path", str(exported[0])])
    with pytest.raises(UserError, match=refusal):
        pretrained_weights(argparse.Namespace(pretrain=str(exported[0])))
    with pytest.raises(UserError, match=refusal):
        run_main(monkeypatch, export, "-load_path", exported[0], "-format", "onnx")


# --- damaged and foreign files -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES.values())
@pytest.mark.parametrize("content", [b"", b"not a network", b"<net><layers/></net>"])
def test_a_file_of_another_program_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(content)
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"foreign\.\w+ (is damaged|was not written by export\.py)"):
        read_checkpoint(path)


@pytest.mark.parametrize("metadata", ["", "no JSON", "[]", "{}", '{"format": "trfe-net export 0"}'])
@pytest.mark.parametrize("target", FORMATS.values(), ids=BOTH)
def test_metadata_of_another_kind_is_refused(converted, tmp_path, target, metadata):
    path = tmp_path / f"net{target.suffixes[0]}"
    target.write(target.convert(nn.Identity(), SIZE, []), path, metadata)
    with pytest.raises(UserError, match=r"was not written by export\.py of this version"):
        read_checkpoint(path)


def test_half_a_file_is_refused(own):
    own.write_bytes(own.read_bytes()[: own.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{own.name} is damaged"):
        read_checkpoint(own)


def test_openvino_needs_both_files_whole(converted, tmp_path):
    path, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    FORMATS["openvino"].write(FORMATS["openvino"].convert(nn.Identity(), SIZE, []), path, METADATA)
    weights.write_bytes(weights.read_bytes()[:1000])
    net = load_checkpoint(path)
    with pytest.raises(UserError, match=r"cannot be run \(.*weights.*\)"):
        net(torch.zeros(1, 3, SIZE, SIZE))
    weights.unlink()
    with pytest.raises(UserError, match=f"there is no {weights}"):
        load_checkpoint(path)


PIP = r"pip install -r requirements-export\.txt"


def test_without_the_extras_the_answer_is_the_line_for_pip(monkeypatch, exported):
    for package in {".onnx": ("onnxruntime", "onnx"), ".xml": ("openvino",)}[exported[0].suffix]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f"need the package {package}, .*{PIP}"):
            load_checkpoint(exported[0])(torch.zeros(1, 3, SIZE, SIZE))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_nothing_is_converted_without_the_extras(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"need the package {package}, .*{PIP}"):
        formats.to_onnx(network("trfe"), SIZE)


def test_int8_needs_its_extra(monkeypatch, graph):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=f"need the package nncf, .*{PIP}"):
        formats.quantise(graph, [torch.zeros(3, SIZE, SIZE)])


# --- what is refused to be written ---------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", BOTH)
def test_what_differs_from_pytorch_is_not_written(monkeypatch, converted, data_root, tmp_path, name, before):
    other = network("trfe")
    other.heads["nodule"].bias.data += 0.02
    path = save(tmp_path / "trfe_best.pth", other, data_root)
    if before:
        for suffix in FORMATS[name].suffixes:
            path.with_suffix(suffix).write_bytes(b"from before")
    there = listing(tmp_path)
    with pytest.raises(UserError, match=r"nothing was written: largest difference [45]\.\de-03, IoU"):
        run_main(monkeypatch, export, "-load_path", path, "-format", name)
    assert listing(tmp_path) == there


@pytest.mark.parametrize(
    ("difference", "change", "int8", "passes"),
    [
        (0.0009, 0.0019, False, True),
        (0.0011, 0.0, False, False),
        (0.0, -0.0021, False, False),
        (0.0, 0.0021, False, False),
        (math.nan, 0.0, False, False),
        (0.9, -0.0049, True, True),
        (0.0, -0.0051, True, False),
        (0.0, 0.0051, True, False),
        (0.0, math.nan, True, False),
    ],
)
def test_the_bounds(difference, change, int8, passes):
    comparison = Comparison(difference, 0.5, 0.5 + change)
    if passes:
        export.check(comparison, int8)
    else:
        with pytest.raises(UserError, match="nothing was written"):
            export.check(comparison, int8)


def test_the_comparison_sees_every_output(data_root):
    net = network("trfeplus")

    class Other(nn.Module):
        tasks = net.tasks

        def __init__(self, changed: str) -> None:
            super().__init__()
            self.changed = changed

        def forward(self, images):
            return {name: value + 0.4 * (name == self.changed) for name, value in net(images).items()}

    samples = export.TESTING["TN3K"](data_root)
    assert export.compare(net, Other("none"), samples, SIZE).difference == 0
    assert export.compare(net, Other("size"), samples, SIZE).difference == pytest.approx(0.4)
    for task in net.tasks:
        assert 0.05 < export.compare(net, Other(task), samples, SIZE).difference < 0.1


def test_an_interrupted_export_leaves_no_mixed_pair(monkeypatch, tmp_path):
    for name in ("old.xml", "old.bin", "new.xml", "new.bin"):
        (tmp_path / name).write_bytes(name.encode())
    replace = export.os.replace

    def fail_on_xml(source, target):
        if target.suffix == ".xml":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(export.os, "replace", fail_on_xml)
    with pytest.raises(OSError, match="disk full"):
        export.publish(tmp_path / "new.xml", tmp_path / "old.xml", (".xml", ".bin"))
    assert not (tmp_path / "old.xml").exists()


def test_what_cannot_be_written_is_said(monkeypatch, converted, checkpoint, tmp_path):
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a\.onnx.*-out"):
        run_main(monkeypatch, export, "-load_path", checkpoint, "-format", "onnx", "-out", tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-out", "missing/a.onnx"], "there is no folder missing"),
        (["-out", "a.xml"], r"-out a\.xml: the name of an onnx file ends in \.onnx"),
        (["-int8"], "-int8 and -calibration <folder of images> belong together"),
        (["-calibration", "images"], "-int8 and -calibration <folder of images> belong together"),
        (["-int8", "-calibration", "missing"], "-calibration missing: there is no such folder, or it holds no images"),
        (["-int8", "-calibration", "{empty}"], "it holds no images"),
        (["-int8", "-calibration", "{data}/tn3k/test-image"], r"0000\.jpg is one of the test images"),
        (["-input_size", "40"], "-input_size 40: trfe takes multiples of 16"),
        (["-data_root", "missing"], "TN3K was expected there"),
    ],
)
def test_mistakes_are_named(monkeypatch, checkpoint, data_root, tmp_path, args, message):
    before = listing(checkpoint.parent).keys()
    args = [arg.format(empty=tmp_path, data=data_root) for arg in args]
    with pytest.raises(UserError, match=message):
        run_main(monkeypatch, export, "-load_path", checkpoint, "-format", "onnx", *args)
    assert listing(checkpoint.parent).keys() == before


def test_a_network_of_glands_has_nothing_to_be_compared_on(monkeypatch, data_root, tmp_path):
    path = save(tmp_path / "unet_best.pth", network("unet", tasks=("gland",)), data_root, "unet")
    with pytest.raises(UserError, match="has learned glands"):
        run_main(monkeypatch, export, "-load_path", path, "-format", "onnx")


def test_a_released_file_gets_the_name_it_was_given(tmp_path):
    path = tmp_path / "released.pth"
    path.write_bytes(b"weights")
    args = export.export_parser().parse_args(["-load_path", str(path), "-format", "onnx", "-model_name", "mtnet"])
    metadata = export.complete(args, network("mtnet"), {"state_dict": {}, "path": path})
    assert metadata["model"] == {"name": "mtnet", "width": 64, "tasks": ["nodule", "gland"]}
    assert (metadata["input_size"], metadata["epoch"], metadata["args"]) == (224, None, {})


# --- int8 ----------------------------------------------------------------------------------------------------


def test_int8_from_the_command_line(monkeypatch, data_root, tmp_path):
    net = network("trfe")
    nn.init.constant_(net.heads["nodule"].bias, 50)  # nodule everywhere: rounding cannot change the masks
    path = save(tmp_path / "trfe_best.pth", net, data_root)
    done = run_script(
        "export.py",
        "-load_path",
        path,
        "-format",
        "openvino",
        "-int8",
        "-calibration",
        data_root / "tn3k/trainval-image",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout.count("\n") == 3
    result = tmp_path / "trfe_best_int8.xml"
    assert read_checkpoint(result)["int8"]
    assert result.with_suffix(".bin").stat().st_size < 0.4 * path.stat().st_size


@pytest.mark.parametrize("name", BOTH)
def test_int8_is_near_the_network(monkeypatch, converted, checkpoint, data_root, tmp_path, name):
    # An untrained network is undecided everywhere, so that its masks say little.
    monkeypatch.setattr(export, "MAX_IOU_CHANGE_INT8", 1)
    out = tmp_path / f"a{SUFFIXES[name]}"
    calibration = ["-int8", "-calibration", data_root / "tn3k/trainval-image"]
    run_main(monkeypatch, export, "-load_path", checkpoint, "-format", name, "-out", out, *calibration)
    samples = export.TESTING["TN3K"](data_root)
    difference = export.compare(load_checkpoint(checkpoint), load_checkpoint(out), samples, SIZE).difference
    assert 1e-6 < difference < 0.05
