"""The loss of a batch whose rows carry different labels: one sum over the tasks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dataloaders.datasets import Batch


def soft_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss per image, 1 - 2 (sum(p y) + 1) / (sum(p) + sum(y) + 1), p = sigmoid(logits).

    (B, 1, H, W) logits and masks of 0 and 1 -> (B,). The constant makes an empty pair score -1, not 0: the release's
    formula, kept as it is.
    """
    p, y = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    return 1 - 2 * ((p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy per image, the mean over its pixels: (B, 1, H, W) twice -> (B,)."""
    return F.binary_cross_entropy_with_logits(logits, mask, reduction="none").flatten(1).mean(1)


CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Dice": soft_dice,
    "BCE": cross_entropy,
    "DiceBCE": lambda logits, mask: soft_dice(logits, mask) + cross_entropy(logits, mask),
}


def batch_losses(
    outputs: dict[str, Tensor],
    batch: Batch,
    criterion: Callable[[Tensor, Tensor], Tensor],
    progress: float,
    parts: int = 1,
) -> dict[str, Tensor]:
    """The losses of a batch by task; their sum is what is minimised.

    Each task counts on the rows that carry its label: as the sum over these rows when there are several tasks, as
    their mean when there is one (the release's way). A network that predicts the nodule's size adds
    (1 - progress) * mean(log(cosh(predicted - true + 1e-12))) over the nodule rows, progress being epoch / nepochs.
    Of one of `parts` equal parts of a batch it is the share: the parts' losses add up to the batch's.
    """
    losses = {}
    for task, rows in batch.rows.items():
        per_image = criterion(outputs[task].float()[rows], batch.masks[task])
        losses[task] = per_image.sum() if len(batch.rows) > 1 else per_image.mean() / parts
    if "size" in outputs:
        difference = outputs["size"].float()[batch.rows["nodule"]] - batch.share
        losses["size"] = (1 - progress) * torch.log(torch.cosh(difference + 1e-12)).mean() / parts
    return losses
