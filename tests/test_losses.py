"""Losses, the learning rate and the training loop, by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dataloaders.datasets import Batch
from model import create_model
from utils.device import Compute
from utils.engine import learning_rate, seed_epoch, train_one_epoch, validate
from utils.errors import UserError
from utils.losses import CRITERIA, batch_losses, cross_entropy, soft_dice

CPU = Compute(torch.device("cpu"), False)
LN3 = math.log(3)  # the logit of p = 3/4


def mean_logit(logits: Tensor, mask: Tensor) -> Tensor:
    """A criterion whose numbers are easy to follow: the mean of an image's logits."""
    return logits.mean((1, 2, 3))


# --- one image ---------------------------------------------------------------------------------------------

# p = (3/4, 1/4; 1/2, 1/2), y = (1, 0; 1, 0).
LOGITS = torch.tensor([[LN3, -LN3], [0.0, 0.0]]).view(1, 1, 2, 2)
MASK = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(1, 1, 2, 2)


def test_soft_dice_by_hand():
    # sum(p y) = 3/4 + 1/2 = 5/4, sum(p) = 2, sum(y) = 2: 1 - 2 (5/4 + 1) / (2 + 2 + 1) = 1 - 4.5 / 5 = 0.1.
    assert soft_dice(LOGITS, MASK).tolist() == pytest.approx([0.1])


# Logits of +-100 are p = 1 and 0. Four pixels.
@pytest.mark.parametrize(
    ("logit", "label", "expected"),
    [
        (-100.0, 0.0, -1.0),  # both empty: 1 - 2 (0 + 1) / (0 + 0 + 1)
        (100.0, 1.0, -1 / 9),  # both full: 1 - 2 (4 + 1) / (4 + 4 + 1)
        (100.0, 0.0, 3 / 5),  # all wrong: 1 - 2 (0 + 1) / (4 + 0 + 1)
        (-100.0, 1.0, 3 / 5),
    ],
)
def test_soft_dice_at_its_ends(logit, label, expected):
    shape = (1, 1, 2, 2)
    assert soft_dice(torch.full(shape, logit), torch.full(shape, label)).item() == pytest.approx(expected)


def test_soft_dice_is_one_number_an_image():
    logits = torch.cat([LOGITS, torch.full((1, 1, 2, 2), -100.0)])
    assert soft_dice(logits, torch.cat([MASK, torch.zeros(1, 1, 2, 2)])).tolist() == pytest.approx([0.1, -1.0])


# -ln(3/4) for (3/4, 1) and for (1/4, 0), ln 2 twice for p = 1/2: the mean of four is (0.575364 + 1.386294) / 4.
BCE = 0.490415


def test_cross_entropy_by_hand():
    # The second image is right everywhere.
    logits = torch.cat([LOGITS, torch.full((1, 1, 2, 2), 100.0)])
    found = cross_entropy(logits, torch.cat([MASK, torch.ones(1, 1, 2, 2)]))
    assert found.tolist() == pytest.approx([BCE, 0.0], abs=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("Dice", 0.1), ("BCE", BCE), ("DiceBCE", 0.1 + BCE)])
def test_criteria_by_name(name, expected):
    assert CRITERIA[name](LOGITS, MASK).tolist() == pytest.approx([expected], abs=1e-5)


# --- a batch -----------------------------------------------------------------------------------------------


def batch_of(rows: dict[str, list[int]], count: int = 4, share: Tensor | None = None) -> Batch:
    """Images whose mean is their row's number plus 1, with masks that `mean_logit` does not look at."""
    image = torch.arange(1.0, count + 1).view(count, 1, 1, 1).expand(count, 3, 2, 2)
    masks = {task: torch.zeros(len(indices), 1, 2, 2) for task, indices in rows.items()}
    share = torch.zeros(len(rows.get("nodule", [])), 1) if share is None else share
    names = [f"{index}.png" for index in range(count)]
    return Batch(image, {task: torch.tensor(indices) for task, indices in rows.items()}, masks, share, names)


def constant_maps(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


BOTH = {"nodule": [0, 2], "gland": [1, 3]}


def test_two_tasks_sum_over_their_own_rows():
    outputs = {"nodule": constant_maps(1, 10, 100, 1000), "gland": constant_maps(5, 50, 500, 5000)}
    losses = batch_losses(outputs, batch_of(BOTH), mean_logit, progress=0.0)
    assert losses == {"nodule": 1 + 100, "gland": 50 + 5000}


def test_one_task_takes_the_mean():
    losses = batch_losses(
        {"nodule": constant_maps(1, 10, 100, 1000)}, batch_of({"nodule": [0, 1, 2, 3]}), mean_logit, 0
    )
    assert losses == {"nodule": 1111 / 4}


def test_masks_go_with_their_rows():
    # Row 2 is the second nodule image; its mask is full where the network says full (-1/9), the others are empty (-1).
    batch = batch_of(BOTH)
    batch.masks["nodule"][1] = 1.0
    outputs = {"nodule": constant_maps(-100, 100, 100, 100), "gland": constant_maps(100, -100, 100, -100)}
    losses = batch_losses(outputs, batch, soft_dice, progress=0.0)
    assert {task: value.item() for task, value in losses.items()} == pytest.approx({"nodule": -1 - 1 / 9, "gland": -2})


def test_rows_without_a_label_get_no_gradient():
    outputs = {task: torch.zeros(4, 1, 2, 2, requires_grad=True) for task in BOTH}
    sum(batch_losses(outputs, batch_of(BOTH), soft_dice, progress=0.0).values()).backward()
    touched = {task: output.grad.abs().sum((1, 2, 3)) > 0 for task, output in outputs.items()}
    assert touched["nodule"].tolist() == [True, False, True, False]
    assert touched["gland"].tolist() == [False, True, False, True]


# Nodule rows 0 and 2 are off by ln 2 and 0; cosh(ln 2) = (2 + 1/2) / 2 = 5/4. The mean over two rows is ln(5/4) / 2
# = 0.111572; at epoch 10 of 40 it counts 3/4, at the last epoch's end nothing. The gland rows' sizes are nonsense.
@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.111572), (10 / 40, 0.083679), (1.0, 0.0)])
def test_size_loss_by_hand(progress, expected):
    share = torch.tensor([[0.1], [0.3]])
    outputs = {task: torch.zeros(4, 1, 2, 2) for task in BOTH}
    outputs["size"] = torch.tensor([[0.1 + math.log(2)], [9.0], [0.3], [9.0]])
    losses = batch_losses(outputs, batch_of(BOTH, share=share), soft_dice, progress)
    assert losses["size"].item() == pytest.approx(expected, abs=1e-6)


def test_bfloat16_outputs_are_compared_in_float32():
    # 1, 2, 3 and 4 are exact in bfloat16, their sigmoids are not.
    outputs = {task: constant_maps(1, 2, 3, 4) for task in BOTH}
    exact = batch_losses(outputs, batch_of(BOTH), soft_dice, progress=0.0)
    halved = {task: output.bfloat16() for task, output in outputs.items()}
    assert batch_losses(halved, batch_of(BOTH), soft_dice, progress=0.0) == exact


# --- the learning rate -------------------------------------------------------------------------------------


# 40 epochs, a step after every 10: (1 - 9/40)^0.9 = 0.775^0.9 = 0.795008, 0.525^0.9 = 0.559942, 0.275^0.9 = 0.312896.
@pytest.mark.parametrize(
    ("epochs", "factor"), [((0, 1, 9), 1.0), ((10, 19), 0.795008), ((20, 29), 0.559942), ((30, 39), 0.312896)]
)
def test_learning_rate_of_the_released_recipe(epochs, factor):
    for epoch in epochs:
        assert learning_rate(1e-3, epoch, 40, 10) == pytest.approx(1e-3 * factor, rel=1e-5)


def test_learning_rate_with_a_step_every_epoch():
    # After epoch e the rate is (1 - e/4)^0.9: 1 after epoch 0, then 0.75^0.9 = 0.771890 and 0.5^0.9 = 0.535887.
    rates = [learning_rate(2.0, epoch, 4, 1) for epoch in range(4)]
    assert rates == pytest.approx([2.0, 2.0, 2 * 0.771890, 2 * 0.535887], rel=1e-5)


def test_random_state_depends_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> float:
        seed_epoch(seed, epoch)
        return torch.rand(1).item()

    first = draw(1234, 5)
    torch.rand(17)
    assert draw(1234, 5) == first
    assert len({first, draw(1234, 6), draw(1235, 5), draw(5, 1234)}) == 4


# --- one epoch ---------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Logits = weight * image; with `mean_logit` the gradient of a batch is the mean of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"nodule": self.weight * image[:, :1]}


def nodules(value: float, count: int = 1, name: str = "a.png") -> Batch:
    """`count` constant nodule images."""
    image, mask = torch.full((count, 3, 16, 16), value), torch.zeros(count, 1, 16, 16)
    return Batch(image, {"nodule": torch.arange(count)}, {"nodule": mask}, torch.zeros(count, 1), [name] * count)


def train(
    net: nn.Module, batches: list[Batch], accumulate: int = 1, on_step: Callable | None = None
) -> dict[str, float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    return train_one_epoch(net, batches, mean_logit, optimizer, CPU, 0.0, accumulate, on_step)


# The gradients of the batches are 2, 4, 6 and 8, whatever the weight; it starts at 1, the rate is 1.
@pytest.mark.parametrize(
    ("accumulate", "values", "expected"),
    [
        (1, [2, 4], 1 - 2 - 4),
        (2, [2, 4], 1 - (2 + 4) / 2),
        (2, [2, 4, 6, 8], 1 - (2 + 4) / 2 - (6 + 8) / 2),
        (4, [2, 4, 6, 8], 1 - (2 + 4 + 6 + 8) / 4),
    ],
)
def test_gradients_of_several_batches_are_averaged(accumulate, values, expected):
    net = Scale()
    train(net, [nodules(float(value)) for value in values], accumulate)
    assert net.weight.item() == pytest.approx(expected)


def test_no_gradient_is_left_over_from_before():
    net = Scale()
    net.weight.grad = torch.tensor(100.0)
    train(net, [nodules(2.0)])
    assert net.weight.item() == -1.0


def test_answers_are_the_means_over_the_batches():
    # Accumulating, the weight stays 1: losses 2 and 4, mean 3. Both are heard of as they come.
    heard = []
    answer = train(Scale(), [nodules(2.0), nodules(4.0)], accumulate=2, on_step=lambda *call: heard.append(call))
    assert answer == {"nodule": 3.0, "loss": 3.0}
    assert heard == [(0, {"nodule": 2.0, "loss": 2.0}), (1, {"nodule": 4.0, "loss": 4.0})]


def test_the_loss_is_the_sum_of_the_tasks():
    class Both(Scale):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return dict.fromkeys(BOTH, self.weight * image[:, :1])

    # Means of the rows 1, 2, 3, 4: nodule 1 + 3, gland 2 + 4, and the weight falls by their sum.
    net = Both()
    assert train(net, [batch_of(BOTH)]) == {"nodule": 4.0, "gland": 6.0, "loss": 10.0}
    assert net.weight.item() == 1 - 10


def test_an_epoch_trains_in_train_mode():
    net = Scale().eval()
    train(net, [nodules(2.0)])
    assert net.training


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("accumulate", "expected"), [(1, 1 - 2), (2, 1)])
def test_a_loss_that_is_not_finite_names_the_files(bad, accumulate, expected):
    net = Scale()
    batches = [nodules(2.0, name="good.png"), nodules(bad, count=2, name="bad.png"), nodules(4.0)]
    with pytest.raises(UserError, match=r"loss is (nan|-?inf) on this batch: bad\.png, bad\.png") as caught:
        train(net, batches, accumulate)
    assert "good.png" not in str(caught.value)
    # The weight is that of the step before: none is made with the bad batch.
    assert net.weight.item() == expected


def test_a_bad_image_leaves_the_parameters_of_a_network():
    net = create_model("unet", width=4)
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(UserError, match=r"bad\.png"):
        train(net, [nodules(math.nan, count=2, name="bad.png")])
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


# --- validation --------------------------------------------------------------------------------------------


class Echo(nn.Module):
    """Answers the image's first channel as logits, and nothing but nan for the gland."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"nodule": image[:, :1], "gland": torch.full_like(image[:, :1], torch.nan)}


def labelled(*pairs: tuple[list[list[float]], list[list[float]]]) -> Batch:
    """A batch of (logits, mask) of nodules."""
    logits = torch.tensor([pair[0] for pair in pairs])[:, None].expand(-1, 3, -1, -1)
    mask = torch.tensor([pair[1] for pair in pairs])[:, None]
    count = len(pairs)
    return Batch(logits, {"nodule": torch.arange(count)}, {"nodule": mask}, torch.zeros(count, 1), ["a.png"] * count)


# Logit 0 is p = 0.5, which counts as nodule: TP 1, FP 1, FN 1: IoU 1/3, Dice 2/4.
PARTLY = ([[1.0, 0.0], [-1.0, -0.1]], [[1.0, 0.0], [1.0, 0.0]])
# TP 1, FN 3: IoU 1/4, Dice 2/5.
SMALL = ([[2.0, -2.0], [-2.0, -2.0]], [[1.0, 1.0], [1.0, 1.0]])
# Nothing there and nothing found: 1 and 1.
EMPTY = ([[-1.0, -1.0], [-1.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]])
# All of it missed: 0 and 0.
MISSED = ([[-1.0, -1.0], [-1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]])


class Labelled:
    """(logits, mask) pairs of nodules as validation images."""

    tasks = ("nodule",)

    def __init__(self, *pairs: tuple[list[list[float]], list[list[float]]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, numbers: range) -> tuple[Tensor, Batch]:
        batch = labelled(*(self.pairs[number] for number in numbers))
        return batch.image, batch


def test_validation_by_hand():
    # Means over images, not over batches of four and one: (1/3 + 1/4 + 1 + 0 + 1) / 5 = 31/60 and
    # (1/2 + 2/5 + 1 + 0 + 1) / 5 = 29/50.
    scores = validate(Echo(), Labelled(PARTLY, SMALL, EMPTY, MISSED, EMPTY), CPU)
    assert scores["iou"] == pytest.approx(31 / 60)
    assert scores["dice"] == pytest.approx(29 / 50)


def test_validation_looks_at_the_label_that_the_data_carries():
    # A gland's mask is compared with the gland's logits, all 3 here, not with the nodule's.
    class Full(nn.Module):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"nodule": -torch.ones(1, 1, 2, 2), "gland": 3 * torch.ones(1, 1, 2, 2)}

    class Glands(Labelled):
        tasks = ("gland",)

        def batch(self, numbers: range) -> tuple[Tensor, Batch]:
            masks = {"gland": torch.ones(1, 1, 2, 2)}
            batch = Batch(torch.zeros(1, 3, 2, 2), {"gland": torch.tensor([0])}, masks, torch.zeros(0, 1), ["a"])
            return batch.image, batch

    assert validate(Full(), Glands(EMPTY), CPU)["iou"] == 1.0


def test_a_smaller_last_group_of_batches_is_averaged_over_its_own_size() -> None:
    """Three equal batches in groups of two: both steps see the gradient of one batch, as without groups."""
    steps: list[torch.Tensor] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(self.param_groups[0]["params"][0].grad.clone())

    net = nn.Module()
    net.weight = nn.Parameter(torch.ones(1))
    net.forward = lambda image: {"nodule": image[:, :1] * net.weight}
    batch = Batch(
        torch.ones(1, 3, 2, 2), {"nodule": torch.arange(1)}, {"nodule": torch.ones(1, 1, 2, 2)}, torch.ones(1, 1), ["a"]
    )
    compute = Compute(torch.device("cpu"), False)
    train_one_epoch(net, [batch] * 3, soft_dice, Recorder(net.parameters(), lr=0.1), compute, 0.0, accumulate=2)
    assert len(steps) == 2
    assert torch.allclose(steps[0], steps[1])
