"""The two loops worth knowing: train_one_epoch and predict; validate and eval.py are built on the second."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataloaders.datasets import Batch, EvalImage
from utils.device import Compute
from utils.errors import UserError
from utils.losses import batch_losses
from utils.metrics import confusion, overlap

T = TypeVar("T")


def learning_rate(base: float, epoch: int, nepochs: int, every: int) -> float:
    """The release's schedule, epochs counted from 0: base * (1 - e / nepochs) ** 0.9, e the last epoch before a step.

    A step comes after every `every` epochs, so that with 10 the rate changes at epochs 10, 20, 30 with e = 9, 19, 29.
    """
    last = epoch // every * every - 1
    return base if last < 0 else base * (1 - last / nepochs) ** 0.9


def seed_epoch(seed: int, epoch: int) -> None:
    """Give dropout its random state for an epoch, from (seed, epoch) alone: a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))


def train_one_epoch(
    net: nn.Module,
    loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    progress: float,
    accumulate: int = 1,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """One pass over `loader`; answers the mean losses of its batches by task, and their sum as `loss`.

    `progress` is epoch / nepochs. Gradients of `accumulate` batches are averaged before a step (-naver_grad).
    `on_step(batch number, losses)` hears of each batch. UserError, naming the batch's files, for a loss that is not
    finite; the weights are then those of the step before.
    """
    net.train()
    sums: dict[str, float] = defaultdict(float)
    optimizer.zero_grad()
    for step, batch in enumerate(tqdm(loader, desc="training", unit="batch", leave=False, disable=None)):
        group = min(accumulate, len(loader) - step // accumulate * accumulate)  # the last one may be smaller
        losses = train_step(net, batch.to(compute.device), criterion, compute, progress, group)
        if (step + 1) % accumulate == 0 or step + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
        for task, value in losses.items():
            sums[task] += value
        if on_step is not None:
            on_step(step, losses)
    return {task: total / len(loader) for task, total in sums.items()}


def train_step(
    net: nn.Module,
    batch: Batch,
    criterion: Callable[[Tensor, Tensor], Tensor],
    compute: Compute,
    progress: float,
    accumulate: int = 1,
) -> dict[str, float]:
    """Forward and backward of one batch; answers its losses by task and their sum as `loss`."""
    with compute.autocast():
        outputs = net(batch.image.contiguous(memory_format=torch.channels_last))
    losses = batch_losses(outputs, batch, criterion, progress)
    loss = torch.stack(list(losses.values())).sum()
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is {loss.item()} on this batch: {', '.join(batch.names)}. Look at these files; "
            f"if they are sound, try a lower -lr, or -precision fp32."
        )
    (loss / accumulate).backward()
    return {**{task: value.item() for task, value in losses.items()}, "loss": loss.item()}


@torch.inference_mode()
def predict(
    net: nn.Module, batches: Iterable[tuple[Tensor, T]], compute: Compute
) -> Iterator[tuple[dict[str, Tensor], T]]:
    """Raw outputs (float32, on the CPU) of a network in eval mode for each (images (B, 3, S, S), anything)."""
    net.eval()
    for images, rest in batches:
        with compute.autocast():
            outputs = net(images.to(compute.device).contiguous(memory_format=torch.channels_last))
        yield {name: output.float().cpu() for name, output in outputs.items()}, rest


def validate(net: nn.Module, loader: DataLoader, compute: Compute) -> dict[str, float]:
    """Mean IoU and Dice per image at the network's size, at the threshold p >= 0.5, on the label the data carries."""
    scores: dict[str, list[float]] = defaultdict(list)
    batches = (
        (batch.image, batch) for batch in tqdm(loader, desc="validating", unit="batch", leave=False, disable=None)
    )
    for outputs, batch in predict(net, batches, compute):
        for task, masks in batch.masks.items():
            for logits, mask in zip(outputs[task], masks, strict=True):
                for name, value in overlap(confusion((logits[0] >= 0).numpy(), mask[0].bool().numpy())).items():
                    scores[name].append(value)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def join_eval_images(images: Sequence[EvalImage]) -> tuple[Tensor, Sequence[EvalImage]]:
    """Join test images for the network; their native sizes differ and stay apart."""
    return torch.stack([image.image for image in images]), images
