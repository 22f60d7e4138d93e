"""Samples as training batches and as test images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data import Sampler as TorchSampler
from tqdm import tqdm

from .samples import MASK_RULES, Sample
from .transforms import flip, normalise, resize_image, resize_mask

# Resized images kept in memory; TN3K and TG3K together take 1.1 GB at 224 x 224.
CACHE_BYTES = 4 * 2**30


class Prepared(NamedTuple):
    """A sample at the network's size: image (S, S, 3) uint8, mask (S, S) bool, share of the native image masked."""

    image: np.ndarray
    mask: np.ndarray
    share: float


class Reader:
    """Reads samples at the network's size by a mask rule; decodes and resizes each once while memory allows."""

    def __init__(self, size: int, mask_rule: str = "clean", cache_bytes: int = CACHE_BYTES) -> None:
        self.size = size
        self.rule = MASK_RULES[mask_rule]
        self.cache: dict[Sample, Prepared] = {}
        self.most = cache_bytes // (4 * size * size)

    def __call__(self, sample: Sample) -> Prepared:
        """The sample as the network takes it. UserError for a file that is not as expected."""
        if sample in self.cache:
            return self.cache[sample]
        image, values = sample.read()
        mask = self.rule(values)
        prepared = Prepared(resize_image(image, self.size), resize_mask(mask, self.size), float(mask.mean()))
        if len(self.cache) < self.most:
            self.cache[sample] = prepared
        return prepared

    def __str__(self) -> str:
        kept, limit = (count * 4 * self.size**2 / 2**20 for count in (len(self.cache), self.most))
        return (
            f"{len(self.cache)} images are kept in memory at {self.size} x {self.size}: {kept:.0f} of {limit:.0f} MiB"
        )

    def check(self, samples: Iterable[Sample]) -> None:
        """Read every sample, so that a bad file is found before training starts, not in its midst."""
        for sample in tqdm(list(dict.fromkeys(samples)), desc="reading data", unit="image", leave=False, disable=None):
            self(sample)


@dataclass(frozen=True)
class Batch:
    """A batch whose rows know which label they carry.

    image: (B, 3, S, S). rows: task -> indices of the rows with that label, (n,). masks: task -> (n, 1, S, S), 0 or 1.
    share: (n, 1), the nodule's share of each native image among the nodule rows. names: B file names.
    """

    image: Tensor
    rows: dict[str, Tensor]
    masks: dict[str, Tensor]
    share: Tensor
    names: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; DataLoader calls this where pin_memory is asked for."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            image=change(self.image),
            rows={task: change(rows) for task, rows in self.rows.items()},
            masks={task: change(masks) for task, masks in self.masks.items()},
            share=change(self.share),
        )


def collate(items: Sequence[Sequence[tuple[Sample, Prepared]]]) -> Batch:
    """Join items, each one sample or a pair, into a batch; pairs come interleaved, as in the release."""
    flat = [entry for item in items for entry in item]
    tasks = [sample.task for sample, _ in flat]
    rows = {task: [i for i, other in enumerate(tasks) if other == task] for task in dict.fromkeys(tasks)}
    masks = {
        # By way of bytes, which PyTorch turns into floats faster than truth values.
        task: torch.from_numpy(np.stack([flat[i][1].mask for i in indices])[:, None].view(np.uint8)).float()
        for task, indices in rows.items()
    }
    return Batch(
        image=normalise(np.stack([prepared.image for _, prepared in flat])),
        rows={task: torch.tensor(indices) for task, indices in rows.items()},
        masks=masks,
        share=torch.tensor([[flat[i][1].share] for i in rows.get("nodule", [])]),
        names=[sample.name for sample, _ in flat],
    )


class TrainSet(Dataset):
    """Training items, each one sample or a pair, flipped at random.

    An item is asked for by (epoch, index) and its flips come from (seed, epoch, index) alone, so that they are the
    same whatever the number of workers and wherever a run was resumed. Each sample of a pair flips by itself.
    """

    def __init__(self, items: Sequence[Sequence[Sample]], reader: Reader, seed: int) -> None:
        self.items, self.reader, self.seed = items, reader, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> list[tuple[Sample, Prepared]]:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        return [(sample, self._flipped(self.reader(sample), rng)) for sample in self.items[index]]

    @staticmethod
    def _flipped(prepared: Prepared, rng: np.random.Generator) -> Prepared:
        image, mask = flip(prepared.image, prepared.mask, rng)
        return prepared._replace(image=image, mask=mask)


class ValidationSet:
    """The samples as they are; `tasks`: what they are labelled for."""

    def __init__(self, samples: Sequence[Sample], reader: Reader) -> None:
        self.samples, self.reader = samples, reader
        self.tasks = tuple(dict.fromkeys(sample.task for sample in samples))

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Batch]:
        """The samples of these numbers, and their images apart for the network."""
        batch = collate([[(self.samples[number], self.reader(self.samples[number]))] for number in numbers])
        return batch.image, batch


class EpochBatches(TorchSampler):
    """Batches of (epoch, index) in an order drawn from (seed, epoch); set `epoch` before each epoch.

    The last incomplete batch is dropped. Of several processes each takes its `part` of every batch, one of `parts`.
    """

    def __init__(self, length: int, batch_size: int, seed: int, part: int = 0, parts: int = 1) -> None:
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0
        self.start, self.count = part * batch_size // parts, batch_size // parts

    def __len__(self) -> int:
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for first in range(self.start, len(self) * self.batch_size, self.batch_size):
            yield [(self.epoch, int(index)) for index in order[first : first + self.count]]


class EvalImage(NamedTuple):
    """An image to be tested: `native` (H, W, 3) and `mask` (H, W) as on disk."""

    sample: Sample
    native: np.ndarray
    mask: np.ndarray


class EvalSet:
    """Test images at native size beside the network's input. The mask stays raw: each protocol has its own rule."""

    def __init__(self, samples: Sequence[Sample], size: int) -> None:
        self.samples, self.size = samples, size

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, list[EvalImage]]:
        """(images (B, 3, S, S) for the network, the images themselves, whose native sizes differ)."""
        images = [EvalImage(self.samples[number], *self.samples[number].read()) for number in numbers]
        return normalise(np.stack([resize_image(image.native, self.size) for image in images])), images
