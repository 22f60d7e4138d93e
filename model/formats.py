"""The file formats of exported networks: everything here that needs a package of requirements-export.txt.

A new format is one class here and its row in FORMATS.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError

# The name of the images in an exported network, and of the metadata in its file.
INPUT = "image"
KEY = "trfe_net"

# Images (B, 3, S, S) float32 -> outputs by name, float32.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def require(package: str) -> ModuleType:
    """A package that is an extra, imported. UserError with the line for pip where it is missing."""
    # OpenVINO and NNCF report their use to a server when they find this package; without it they run silently.
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"exported networks need the package {package}, which cannot be imported ({error}). "
            f"Install the extras: pip install -r requirements-export.txt"
        ) from error


class Format:
    """One file format. `suffixes`: of the files that make up a network, the one to load first; `bf16`: whether what
    runs it can compute in bfloat16 on the CPU; `fixes_batch`: whether what runs it is faster if made for one number
    of images."""

    suffixes: tuple[str, ...]
    bf16 = False
    fixes_batch = False

    def convert(self, net: nn.Module, size: int, calibration: Sequence[Tensor]) -> Any:
        """`net`, in eval mode, for images (any number, 3, size, size); int8 where there are calibration images."""
        raise NotImplementedError

    def write(self, model: Any, path: Path, metadata: str) -> None:
        """Write what `convert` answered, with the metadata inside. OSError where that cannot be."""
        raise NotImplementedError

    def read_metadata(self, path: Path) -> str | None:
        """The metadata of a file, None where it has none. Any exception for a file that is not of this format."""
        raise NotImplementedError

    def start(self, path: Path, bf16: bool, batch: int | None) -> Run:
        """A function that runs the network, on `batch` images if that is fixed; several threads may call it at once."""
        raise NotImplementedError


class Onnx(Format):
    """ONNX, run by onnxruntime."""

    suffixes = (".onnx",)

    def convert(self, net: nn.Module, size: int, calibration: Sequence[Tensor]) -> Any:
        model = to_onnx(net, size)
        return quantise(model, calibration) if calibration else model

    def write(self, model: Any, path: Path, metadata: str) -> None:
        model.metadata_props.add(key=KEY, value=metadata)
        path.write_bytes(model.SerializeToString())

    def read_metadata(self, path: Path) -> str | None:
        properties = require("onnx").load_model(path, load_external_data=False).metadata_props
        return next((entry.value for entry in properties if entry.key == KEY), None)

    def start(self, path: Path, bf16: bool, batch: int | None) -> Run:
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))


class OpenVino(Format):
    """OpenVINO's two files, the network in .xml and its weights in .bin."""

    suffixes = (".xml", ".bin")
    bf16 = True
    fixes_batch = True

    def convert(self, net: nn.Module, size: int, calibration: Sequence[Tensor]) -> Any:
        # By way of ONNX, so that both formats hold the same graph, with names and a fixed size.
        model = require("openvino").Core().read_model(to_onnx(net, size).SerializeToString())
        return quantise(model, calibration) if calibration else model

    def write(self, model: Any, path: Path, metadata: str) -> None:
        model.set_rt_info(metadata, [KEY])
        try:
            # By default the weights would be rounded to float16.
            require("openvino").save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:  # so it reports a full disk
            raise OSError(str(error)) from error

    def read_metadata(self, path: Path) -> str | None:
        require("openvino")
        # Read as the text it is: for what is no network of its own, OpenVINO tries the formats of other programs.
        entry = ET.parse(path).find(f"rt_info/{KEY}")
        return None if entry is None else entry.get("value")

    def start(self, path: Path, bf16: bool, batch: int | None) -> Run:
        core, threads = require("openvino").Core(), torch.get_num_threads()
        # A stream serves one call at a time: as many as there are cores for, each with the threads that PyTorch uses.
        streams = max(1, (os.cpu_count() or 1) // threads)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": streams * threads,
            "NUM_STREAMS": streams,
            # A thread tied to a core waits wherever another program is busy on that core.
            "ENABLE_CPU_PINNING": False,
        }
        model = core.read_model(path)
        model.reshape([batch, *list(model.input().partial_shape)[1:]])
        compiled = core.compile_model(model, "CPU", settings)

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            # A request belongs to one thread, and making it is a small part of a millisecond.
            answer = compiled.create_infer_request().infer({INPUT: images})
            return {output.get_any_name(): value for output, value in answer.items()}

        return run


FORMATS: dict[str, Format] = {"onnx": Onnx(), "openvino": OpenVino()}


def to_onnx(net: nn.Module, size: int) -> Any:
    """`net` as an ONNX model for images (any number, 3, size, size), its outputs named as the network names them."""
    onnx = require("onnx")
    require("onnxscript")
    _quiet("onnxscript", "onnx_ir")
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        names = list(net(example))
    program = torch.onnx.export(
        net,
        (example,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=names,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    model = program.model_proto
    # PyTorch notes the source line of each node there, with the folders of this machine.
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
    onnx.checker.check_model(model)
    return model


def _quiet(*loggers: str) -> None:
    """Hear of errors only from packages that tell each of their steps."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)


def quantise(model: Any, images: Sequence[Tensor]) -> Any:
    """An ONNX or OpenVINO model in int8, its ranges measured on `images`, each (3, S, S)."""
    _quiet("torch.utils.cpp_extension")  # NNCF makes it look for a CUDA compiler
    nncf = require("nncf")
    _quiet("nncf")
    data = nncf.Dataset(images, lambda image: {INPUT: image[None].contiguous().numpy()})
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        # Symmetric throughout, the faster of NNCF's two presets; the masks are as good.
        return nncf.quantize(model, data, preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(images))
