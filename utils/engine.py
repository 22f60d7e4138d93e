"""The two loops worth knowing: train_one_epoch and assess; validate and eval.py are built on the second."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataloaders.datasets import Batch, ValidationSet
from utils.device import Compute
from utils.errors import UserError
from utils.losses import batch_losses
from utils.metrics import confusion, overlap
from utils.parallel import ALONE, Ranks

T = TypeVar("T")
R = TypeVar("R")

# Images at a time in validation; small, since several batches are under way at once.
VALIDATION_BATCH = 4


def learning_rate(base: float, epoch: int, nepochs: int, every: int) -> float:
    """The release's schedule, epochs counted from 0: base * (1 - e / nepochs) ** 0.9, e the last epoch before a step.

    A step comes after every `every` epochs, so that with 10 the rate changes at epochs 10, 20, 30 with e = 9, 19, 29.
    """
    last = epoch // every * every - 1
    return base if last < 0 else base * (1 - last / nepochs) ** 0.9


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Give dropout its random state for an epoch, from (seed, epoch, rank) alone: a resumed run draws the same."""
    entropy = [seed, epoch, rank] if rank else [seed, epoch]
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def train_one_epoch(
    net: nn.Module,
    loader: DataLoader,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    progress: float,
    accumulate: int = 1,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One pass over `loader`; answers the mean losses of its batches by task, and their sum as `loss`.

    `progress` is epoch / nepochs. Gradients of `accumulate` batches are averaged before a step (-naver_grad).
    `on_step(batch number, losses)` hears of each batch. UserError, naming the batch's files, for a loss that is not
    finite; the weights are then those of the step before. Of several processes each trains on its part of a batch;
    the losses are the joined batch's.
    """
    net.train()
    # Between steps the processes need not hear of each other's gradients.
    apart = getattr(net, "no_sync", contextlib.nullcontext)
    sums: dict[str, float] = defaultdict(float)
    optimizer.zero_grad()
    progress_bar = tqdm(loader, desc="training", unit="batch", leave=False, disable=None if ranks.writes else True)
    for step, batch in enumerate(progress_bar):
        group = min(accumulate, len(loader) - step // accumulate * accumulate)  # the last one may be smaller
        last = (step + 1) % accumulate == 0 or step + 1 == len(loader)
        with contextlib.nullcontext() if last else apart():
            losses = train_step(net, batch.to(compute.device), criterion, compute, progress, group, ranks)
        if last:
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
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Forward and backward of one batch, joined over the processes; its losses by task and their sum as `loss`."""
    with compute.autocast():
        outputs = net(batch.image.contiguous(memory_format=torch.channels_last))
    losses = batch_losses(outputs, batch, criterion, progress, ranks.world)
    values = torch.stack(list(losses.values()))
    joined = ranks.total(values.detach().clone())
    if not torch.isfinite(joined.sum()):
        raise UserError(
            f"the loss is {joined.sum().item()} on this batch: {', '.join(batch.names)}. Look at these files; "
            f"if they are sound, try a lower -lr, or -precision fp32."
        )
    # The processes' shares add up to the loss, but their gradients are averaged.
    (values.sum() * ranks.world / accumulate).backward()
    return {**dict(zip(losses, joined.tolist(), strict=True)), "loss": joined.sum().item()}


class Images(Protocol[T]):
    """Numbered images: batch(numbers) answers (images (B, 3, S, S) for the network, anything about them)."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, T]: ...


def assess(
    net: nn.Module,
    images: Images[T],
    batch_size: int,
    finish: Callable[[dict[str, Tensor], T], list[R]],
    compute: Compute,
    threads: int = 0,
    tasks: Sequence[str] | None = None,
    ranks: Ranks = ALONE,
) -> list[R]:
    """What `finish(raw outputs, anything about them)` answers for each batch, image by image in order.

    The outputs come in float32, on the CPU, of `tasks` alone if given. Each batch is read, predicted and finished by
    one of `threads` threads (0: as many as there are to compute with), which share the cores: so scoring and writing
    never wait for the network. Of several processes each takes its part of the batches.
    """
    cores = torch.get_num_threads()
    threads = threads or cores
    ready = compute.for_inference(net, tasks)

    @torch.inference_mode()
    def work(start: int) -> list[R]:
        inputs, about = images.batch(range(start, min(start + batch_size, len(images))))
        return finish(answer(ready, inputs, compute), about)

    starts = ranks.part(range(0, len(images), batch_size))
    torch.set_num_threads(max(1, cores // threads))
    pool = ThreadPoolExecutor(threads)
    try:
        done = pool.map(work, starts)
        silent = None if ranks.writes else True
        batches = list(tqdm(done, "evaluating", len(starts), unit="batch", leave=False, disable=silent))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
    return [result for batch in ranks.joined(batches) for result in batch]


def answer(ready: nn.Module, images: Tensor, compute: Compute) -> dict[str, Tensor]:
    """Raw outputs, float32 and on the CPU, of a network that is ready for inference."""
    outputs = ready(compute.images(images))
    return {name: output.float().cpu() for name, output in outputs.items()}


def validate(net: nn.Module, images: ValidationSet, compute: Compute, ranks: Ranks = ALONE) -> dict[str, float]:
    """Mean IoU and Dice per image at the network's size, at the threshold p >= 0.5, on the label the data carries."""

    def score(outputs: dict[str, Tensor], batch: Batch) -> list[dict[str, float]]:
        return [
            overlap(confusion((logits[0] >= 0).numpy(), mask[0].bool().numpy()))
            for task, masks in batch.masks.items()
            for logits, mask in zip(outputs[task], masks, strict=True)
        ]

    rows = assess(net, images, VALIDATION_BATCH, score, compute.uncompiled, tasks=images.tasks, ranks=ranks)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
