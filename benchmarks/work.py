"""One piece of work done one way; prints what it measured as a line of JSON. benchmarks/bench.py runs it.

The plain way: float32, contiguous memory, the network as the release builds it (ReLUs in place, biases inside the
up-convolutions, unused layers), images decoded and normalised one by one at every use, evaluation image by image with
the scores that scikit-learn and MedPy offer.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders import TESTING, training_samples
from dataloaders.datasets import EpochBatches, EvalImage, EvalSet, Reader, TrainSet, collate
from dataloaders.transforms import MEAN, STD, resize_image, resize_mask
from model import create_model, load_checkpoint
from model.recompute import recompute
from utils.device import Compute, choose_compute
from utils.engine import answer, assess, train_step
from utils.losses import soft_dice
from utils.report import Row, score, score_batch, write_pictures

SIZE, PAIRS = 224, 8
BOTH = ("nodule", "gland")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=list(WORK))
    parser.add_argument("-mode", choices=("plain", "ours"), default="ours")
    parser.add_argument("-precision", default="auto")
    parser.add_argument("-without", nargs="*", choices=list(CHANGES), default=[], help="changes to leave out")
    parser.add_argument("-scores", choices=("libraries", "ours"), default="libraries")
    for name in ("compile", "save_memory", "int8"):
        parser.add_argument(f"-{name}", type=int, default=0)
    parser.add_argument("-model_name", default="trfe")
    parser.add_argument("-checkpoint", type=Path)
    parser.add_argument("-data_root", type=Path, default=Path("data"))
    parser.add_argument("-images", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(json.dumps(WORK[args.work](args)))


def setting(args: argparse.Namespace) -> tuple[nn.Module, Compute]:
    """The network and where it computes."""
    net = load_checkpoint(args.checkpoint) if args.checkpoint else create_model(args.model_name)
    if args.mode == "plain":
        return as_released(net), Compute(torch.device("cpu"))
    for change in args.without:
        if (undo := CHANGES[change]) is not None:
            undo(net)
    compute = choose_compute("cpu", args.precision, bool(args.compile), reuse="memory" not in args.without)
    return net, compute


def as_released(net: nn.Module) -> nn.Module:
    """The network layer by layer as the release builds it, with as many unused parameters as trfe has there."""
    relus_in_place(net)
    biases_inside(net)
    net.unused = nn.Parameter(torch.zeros(3_310_000))
    return net


def relus_in_place(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True


def biases_inside(net: nn.Module) -> None:
    """Up-convolutions with their biases inside, and GroupNorms, as PyTorch has them."""
    for module in net.modules():
        for kind in (nn.ConvTranspose2d, nn.GroupNorm):
            if isinstance(module, kind):
                module.__class__ = kind


# The changes beyond channels_last and bfloat16 that can be left out, and how.
CHANGES = {"memory": None, "bias": biases_inside, "relu": relus_in_place, "folding": None, "threads": None}


def median_ms(call: Callable[[], object], times: int, warm: int = 2) -> float:
    """Median of `times` calls in ms, after `warm` more."""
    taken = []
    for _ in range(warm + times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[warm:]) * 1e3


def training(args: argparse.Namespace) -> dict[str, float]:
    """A training step of 8 nodule and 8 gland images: time per image, peak memory of the process."""
    net, compute = setting(args)
    items, _ = training_samples("TATN", BOTH, args.data_root, 0)
    data = TrainSet(items, Reader(SIZE), 0)
    batch = collate([data[0, index] for index in range(PAIRS)])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    if args.save_memory:
        recompute(net.full_size_stages())
    plain = args.mode == "plain"
    forward = net if plain else compute.for_training(net)
    images = batch.image.contiguous() if plain else batch.image

    def step() -> None:
        if plain:
            outputs = net(images)
            sum(soft_dice(outputs[task][rows], batch.masks[task]).sum() for task, rows in batch.rows.items()).backward()
        else:
            train_step(forward, batch, soft_dice, compute, 0.0)
        optimizer.step()
        optimizer.zero_grad()

    net.train()
    taken = median_ms(step, 3, 2) if compute.bf16 else median_ms(step, 1, 1)
    return {"ms per image": taken / len(images), "peak memory, MiB": peak_mib()}


def network(args: argparse.Namespace) -> dict[str, float]:
    """One image through the network alone."""
    net, compute = setting(args)
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        if args.mode == "plain":
            net.eval()
            return {"ms per image": median_ms(lambda: net(image), 10)}
        if "folding" in args.without:
            net.eval().to(memory_format=torch.channels_last)
            with compute.autocast():
                return {"ms per image": median_ms(lambda: net(image.to(memory_format=torch.channels_last)), 20, 5)}
        ready = compute.for_inference(net)
        return {"ms per image": median_ms(lambda: answer(ready, image, compute), 20, 5)}


def exported(args: argparse.Namespace) -> dict[str, float]:
    """One image through the network as OpenVINO runs it; in int8 with images of the data for its ranges."""
    from model.exported import FORMAT, ExportedNetwork, read_exported
    from model.formats import FORMATS

    target = FORMATS["openvino"]
    exporting, compute = setting(args)
    samples = [nodule for nodule, _ in training_samples("TATN", BOTH, args.data_root, 0)[0][:100]] if args.int8 else []
    images, _ = EvalSet(samples, SIZE).batch(range(len(samples))) if samples else ([], None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.xml")
        about = {"format": FORMAT, "model": {"tasks": BOTH}, "input_size": SIZE}
        target.write(target.convert(exporting.eval(), SIZE, list(images)), path, json.dumps(about))
        net = ExportedNetwork(read_exported(path))
        image = torch.randn(1, 3, SIZE, SIZE)
        return {"ms per image": median_ms(lambda: answer(net, image, compute), 20, 5)}


def evaluation(args: argparse.Namespace) -> dict[str, float]:
    """eval.py's loop over test images, scores and pictures included, after a few to warm up."""
    net, compute = setting(args)
    samples = TESTING["TN3K"](args.data_root)[: args.images]
    images, first = EvalSet(samples, SIZE), EvalSet(samples[:4], SIZE)
    with tempfile.TemporaryDirectory() as folder:
        if args.mode == "plain":
            plain_evaluation(net.eval(), first, args.scores == "ours", Path(folder))
            return plain_evaluation(net, images, args.scores == "ours", Path(folder))
        assess_all(net, first, compute, Path(folder), args)
        start = time.perf_counter()
        assess_all(net, images, compute, Path(folder), args)
        return {"ms per image": (time.perf_counter() - start) / len(images) * 1e3}


PARTS = ("data", "network", "scores", "pictures")


def plain_evaluation(net: nn.Module, images: EvalSet, our_scores: bool, folder: Path) -> dict[str, float]:
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, call: Callable, *args: object) -> object:
        start = time.perf_counter()
        result = call(*args)
        spent[part] += time.perf_counter() - start
        return result

    for number in range(len(images)):
        inputs, image = timed("data", plain_test_image, images, number)
        with torch.inference_mode():
            probabilities = {task: p[0, 0].sigmoid() for task, p in timed("network", net, inputs).items()}
        predicted = timed("scores", score if our_scores else library_scores, image, probabilities)[1]
        timed("pictures", write_pictures, folder, image, predicted, 0.0)
    per_image = {part: seconds / len(images) * 1e3 for part, seconds in spent.items()}
    return {"ms per image": sum(per_image.values()), **per_image}


def assess_all(net: nn.Module, images: EvalSet, compute: Compute, folder: Path, args: argparse.Namespace) -> None:
    def finish(outputs: dict[str, Tensor], batch: list[EvalImage]) -> list[Row]:
        return score_batch(folder, outputs, batch, net.tasks)

    assess(net, images, 2, finish, compute, threads=1 if "threads" in args.without else 0)


def plain_normalise(image: np.ndarray) -> Tensor:
    values = (image.astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def plain_test_image(images: EvalSet, number: int) -> tuple[Tensor, EvalImage]:
    sample = images.samples[number]
    image = EvalImage(sample, *sample.read())
    return plain_normalise(resize_image(image.native, SIZE))[None], image


def library_scores(image: EvalImage, probabilities: dict[str, Tensor]) -> tuple[None, dict[str, np.ndarray]]:
    """The measures of both protocols by scikit-learn and MedPy, each by its own call, as a release's loop has them."""
    from medpy.metric.binary import assd, hd95
    from sklearn import metrics

    size = image.mask.shape
    predicted = {task: cv2.resize(p.numpy(), size[::-1]) >= 0.5 for task, p in probabilities.items()}
    small, probability = resize_mask(image.mask > 127, SIZE), probabilities["nodule"].numpy()
    for true, found in ((small, probability >= 0.5), (image.mask > 127, predicted["nodule"])):
        pixels = true.ravel(), found.ravel()
        metrics.confusion_matrix(*pixels)
        metrics.accuracy_score(*pixels)
        for measure in (metrics.precision_score, metrics.recall_score, metrics.f1_score, metrics.jaccard_score):
            measure(*pixels, zero_division=0)
        if true.any() and found.any():
            hd95(found, true)
            assd(found, true)
    metrics.roc_auc_score(small.ravel(), probability.ravel() >= 0.5)
    metrics.mean_absolute_error(small.ravel(), probability.ravel())
    return None, predicted


def data(args: argparse.Namespace) -> dict[str, float]:
    """The batches of an epoch after the first; in one thread, as a data loader's worker has it."""
    torch.set_num_threads(1)
    items, _ = training_samples("TATN", BOTH, args.data_root, 0)
    plain = args.mode == "plain"
    if not plain:
        choose_compute("cpu")
    reader = Reader(SIZE, cache_bytes=0) if plain else Reader(SIZE)
    join = plain_collate if plain else collate
    loader = DataLoader(TrainSet(items, reader, 0), batch_sampler=EpochBatches(len(items), PAIRS, 0), collate_fn=join)

    def epoch() -> None:
        for _ in loader:
            pass

    per_epoch = median_ms(epoch, 3, 1)
    return {"ms per image": per_epoch / (len(loader) * PAIRS * 2)}


def plain_collate(items: list) -> tuple[Tensor, Tensor]:
    flat = [prepared for item in items for _, prepared in item]
    masks = torch.stack([torch.from_numpy(np.ascontiguousarray(prepared.mask)).float() for prepared in flat])
    return torch.stack([plain_normalise(prepared.image) for prepared in flat]), masks


def floors(args: argparse.Namespace) -> dict[str, float]:
    """What the machine gives at best: matrix products, memory; and what the network asks for."""
    from torch.utils.flop_counter import FlopCounterMode

    choose_compute("cpu")
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        rates[f"{name} matrix product, TFLOP/s"] = 2 * 2048**3 / median_ms(lambda a=a, b=b: a @ b, 10) / 1e9
    features = [torch.randn(16, 64, SIZE, SIZE).bfloat16().contiguous(memory_format=torch.channels_last) for _ in "xyg"]
    weight = torch.randn(64, 64, 3, 3).bfloat16()
    flops = 2 * features[0].numel() * 64 * 9
    forward = median_ms(lambda: F.conv2d(features[0], weight, padding=1), 4)
    masks = [[True, False, False], [False, True, False]]
    sides = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    backward = [
        median_ms(lambda m=m: torch.ops.aten.convolution_backward(*features[1:], weight, None, *sides, m), 4)
        for m in masks
    ]
    for name, taken in zip(("forward", "gradient of x", "gradient of w"), (forward, *backward), strict=True):
        rates[f"3x3, 64 to 64 at {SIZE}, {name}, TFLOP/s"] = flops / taken / 1e9
    copied = median_ms(lambda: features[1].copy_(features[0]), 10)
    rates["copy, GB/s"] = 2 * features[0].nbytes / copied / 1e6
    with FlopCounterMode(display=False) as counter:
        create_model(args.model_name).eval()(torch.zeros(1, 3, SIZE, SIZE))
    return {**rates, "GFLOP per image, forward": counter.get_total_flops() / 1e9}


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


WORK = {
    "training": training,
    "network": network,
    "exported": exported,
    "evaluation": evaluation,
    "data": data,
    "floors": floors,
}

if __name__ == "__main__":
    main()
