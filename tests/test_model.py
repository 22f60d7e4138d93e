"""The networks: parity with the authors' release, and by hand what parity cannot see."""

import functools
import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dataloaders.datasets import Batch
from model import NETWORKS, create_model, list_models, transfer
from model.blocks import double_conv
from model.rpg import GlandAttention, MaskGuide
from utils.device import Compute
from utils.engine import train_step
from utils.errors import UserError
from utils.losses import batch_losses, soft_dice

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
needs_parity = pytest.mark.skipif(
    not (PARITY / "fill.py").is_file(), reason="the folder shared/parity, with the release's answers, is absent"
)

RELEASED = ("unet", "mtnet", "trfe", "trfe1", "trfe2", "trfeplus")
GUIDED = ("trfe", "trfe1", "trfe2", "trfe-b", "trfe-c", "trfeplus")
NAMES = ("unet", "mtnet", *GUIDED)
CPU = Compute(torch.device("cpu"), False)

# The released layers that no forward pass uses.
ALIGN = tuple(f"up{level}_align" for level in (6, 7, 8, 9))
LEFT_OUT = {
    "unet": (),
    "mtnet": (),
    "trfe": (*ALIGN, "reduction6"),
    "trfe1": (*ALIGN, "reduction6"),
    "trfe2": (*ALIGN, "reduction6"),
    "trfeplus": ("reduction6",),
}


def on_meta(name: str, **settings) -> nn.Module:
    """A network of shapes without numbers: full width costs nothing."""
    with torch.device("meta"):
        return create_model(name, **settings)


def modules_of(net: nn.Module, kind: type) -> list:
    return [module for module in net.modules() if isinstance(module, kind)]


def parameter_count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# --- parity with the release -------------------------------------------------------------------------------


@functools.cache
def fill() -> ModuleType:
    """The release's rule for weights and inputs, shared/parity/fill.py."""
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def released_keys(name: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{name}.keys.json").read_text())


def disks(count: int, size: int, salt: int) -> Tensor:
    """The masks of the parity folder's README."""
    rng = np.random.default_rng(100 + salt)
    y, x = np.mgrid[:size, :size]
    masks = np.zeros((count, 1, size, size), np.float32)
    for mask in masks:
        cy, cx = rng.uniform(size * 0.3, size * 0.7, 2)
        radius = rng.uniform(size * 0.1, size * 0.3)
        mask[0] = (y - cy) ** 2 + (x - cx) ** 2 < radius * radius
    return torch.from_numpy(masks)


def parity_batch(tasks: tuple[str, ...]) -> Batch:
    """Four images: nodules in rows 0 and 2, glands in rows 1 and 3; nodules alone where there is one task."""
    rows = {"nodule": torch.arange(4)}
    if len(tasks) == 2:
        rows = {"nodule": torch.tensor([0, 2]), "gland": torch.tensor([1, 3])}
    masks = {task: disks(4, 64, 0)[indices] for task, indices in rows.items()}
    return Batch(fill().image(4, 64, 50), rows, masks, share=masks["nodule"].mean((2, 3)), names=list("abcd"))


@pytest.fixture(scope="module", params=RELEASED)
def released(request) -> tuple[str, dict[str, Tensor]]:
    """A released name and the filled weights of its released state dict, under our names."""
    name = request.param
    return name, NETWORKS[name].released.convert(fill().state_dict(released_keys(name), 0), f"{name}.pth")[0]


@pytest.fixture
def filled(released) -> tuple[str, nn.Module]:
    """A released name and our network with the filled weights, dropping nothing out."""
    name, weights = released
    net = on_meta(name)
    net.load_state_dict({key: value.clone() for key, value in weights.items()}, assign=True)
    for module in modules_of(net, nn.Dropout):
        module.p = 0.0
    return name, net


def same_names(answers: dict) -> dict:
    """The release's answers under our names: its `scale` is our `size`."""
    return {"size" if name == "scale" else name: value for name, value in answers.items()}


@needs_parity
@torch.inference_mode()
def test_outputs_agree_with_the_release(filled, record_property):
    name, net = filled
    with np.load(PARITY / f"{name}.npz") as answers:
        expected = same_names(dict(answers))
    found = net.eval()(fill().image(2, 64, 0))
    assert found.keys() == expected.keys()
    differences = {
        key: np.abs(found[key].numpy() - value).max() / np.abs(value).max() for key, value in expected.items()
    }
    print(f"{name}: largest relative difference of an output {max(differences.values()):.1e}")
    record_property("largest relative difference of an output", float(max(differences.values())))
    assert max(differences.values()) <= 1e-4, differences


def assert_losses_agree(found: dict[str, float], released_losses: dict[str, float]) -> float:
    """Within 1e-4 relative, `size` within 1e-6 absolute; answers the largest relative difference of the others."""
    expected = same_names(released_losses)
    assert found.get("size", 0) == pytest.approx(expected.pop("size", 0), abs=1e-6)
    differences = {term: abs(found[term] - value) / value for term, value in expected.items()}
    assert max(differences.values()) <= 1e-4, differences
    return max(differences.values())


def released_losses(name: str) -> list[dict[str, float]]:
    return json.loads((PARITY / "training_steps.json").read_text())[name]


@needs_parity
@torch.inference_mode()
def test_first_loss_agrees_with_the_release(filled):
    name, net = filled
    batch = parity_batch(net.tasks)
    losses = batch_losses(net.train()(batch.image), batch, soft_dice, progress=10 / 40)
    found = {task: value.item() for task, value in losses.items()}
    assert_losses_agree({**found, "loss": sum(found.values())}, released_losses(name)[0])


# Full-width training takes long on a CPU; the paper's network stands for the others, which are marked slow.
@needs_parity
@pytest.mark.parametrize(
    "released",
    [pytest.param(name, marks=[] if name == "trfe" else pytest.mark.slow) for name in RELEASED],
    indirect=True,
)
def test_three_training_steps_agree_with_the_release(filled, record_property):
    name, net = filled
    batch, largest = parity_batch(net.train().tasks), 0.0
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    for expected in released_losses(name):
        found = train_step(net, batch, soft_dice, CPU, progress=10 / 40)
        optimizer.step()
        optimizer.zero_grad()
        largest = max(largest, assert_losses_agree(found, expected))
    print(f"{name}: largest relative difference of a loss {largest:.1e}")
    record_property("largest relative difference of a loss", largest)


# --- the released files ------------------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize("name", RELEASED)
def test_released_file_converts_completely(name):
    keys = released_keys(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
    converted, left_out = NETWORKS[name].released.convert(state, "file.pth")
    net = on_meta(name)
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in net.state_dict().items()
    }
    # Layers are named one by one, up6_align.0 and the like: exactly the ones that models.md calls unused.
    assert {layer.partition(".")[0] for layer in left_out} == set(LEFT_OUT[name])
    assert len(set(left_out)) == len(left_out)
    unused_keys = [key for key in keys if key.partition(".")[0] in LEFT_OUT[name]]
    assert {key.rpartition(".")[0] for key in unused_keys} == set(left_out)
    assert len(converted) == len(keys) - len(unused_keys)


@needs_parity
def test_trfe_leaves_out_3_31_of_46_55_million_parameters():
    counters = ("running_mean", "running_var", "num_batches_tracked")
    sizes = {key: math.prod(shape) for key, shape in released_keys("trfe").items() if not key.endswith(counters)}
    unused = sum(size for key, size in sizes.items() if key.startswith(LEFT_OUT["trfe"]))
    assert round(sum(sizes.values()) / 1e6, 2) == 46.55
    assert round(unused / 1e6, 2) == 3.31
    assert parameter_count(on_meta("trfe")) == sum(sizes.values()) - unused
    assert round(parameter_count(on_meta("trfe")) / 1e6, 2) == 43.24


# --- the guides by hand ------------------------------------------------------------------------------------
# At width 1 the last guided level, 2, has two channels. One pixel: x = (1, 2), G = (3, -1).

X = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
G = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)


@torch.inference_mode()
def guided(net: nn.Module, x: Tensor = X, prior: Tensor = G, level: int = 2) -> list[float]:
    return net.eval().guide(level, x, prior).flatten().tolist()


def set_conv(conv: nn.Conv2d, weight: list[list[float]], bias: list[float]) -> None:
    """Weights (out, in) and biases of a 1x1 convolution."""
    conv.weight.data = torch.tensor(weight)[:, :, None, None]
    conv.bias.data = torch.tensor(bias)


def test_mask_guide_by_hand():
    # Two channels of 1 x 2 pixels, P = (0.25, 1): every channel times 1.25 at the left pixel and 2 at the right.
    x = torch.tensor([[4.0, 3.0], [-8.0, 0.5]]).view(1, 2, 1, 2)
    prior = torch.tensor([0.25, 1.0]).view(1, 1, 1, 2)
    assert guided(create_model("trfe", width=1), x, prior) == [5.0, 6.0, -10.0, 1.0]


def test_feature_guide_by_hand():
    # 1 + 1 * 3 = 4 and 2 + 2 * (-1) = 0: no convolution and no sigmoid on G.
    assert guided(create_model("trfe1", width=1)) == [4.0, 0.0]


def test_fused_guide_by_hand():
    net = create_model("trfe2", width=1)
    conv1, norm1, _, conv2, _, _ = net.guide.levels[2]
    # z = (1, 2, 3, -1). First convolution: 1 + 2 * 3 = 7 and 2 - (-1) = 3, biases 0 and -5: (7, -2).
    set_conv(conv1, [[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, -1.0]], [0.0, -5.0])
    # BatchNorm with means (1, 0) and variances (4, 1): (7 - 1) / 2 = 3 and -2; ReLU: (3, 0).
    norm1.running_mean.copy_(torch.tensor([1.0, 0.0]))
    norm1.running_var.copy_(torch.tensor([4.0, 1.0]))
    # Second convolution: -3 + 2 = -1 and 3 * 0.5 + 1 = 2.5; BatchNorm leaves both, ReLU: (0, 2.5). x + that.
    set_conv(conv2, [[-1.0, 9.0], [0.5, 9.0]], [2.0, 1.0])
    assert guided(net) == pytest.approx([1 + 0, 2 + 2.5], abs=1e-4)


def test_gated_feature_guide_by_hand():
    net = create_model("trfe-b", width=1)
    # Gate logits: 3 - 3 = 0 -> 1/2, and ln 3 + 0 -> 3/4. x + x * gate: 1 * 1.5 and 2 * 1.75.
    set_conv(net.guide.levels[2], [[1.0, 0.0], [0.0, 0.0]], [-3.0, math.log(3)])
    assert guided(net) == pytest.approx([1.5, 3.5])


def test_joint_feature_guide_by_hand():
    net = create_model("trfe-c", width=1)
    # z = (1, 2, 3, -1): 10 * 1 + 1 * 3 = 13, and 2 + 100 * (-1) - 1 = -99; no sigmoid.
    # x + x * that: 1 + 13 = 14, and 2 + 2 * (-99) = -196.
    set_conv(net.guide.levels[2], [[10.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 100.0]], [0.0, -1.0])
    assert guided(net) == pytest.approx([14.0, -196.0])


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Standard-normal numbers in every parameter, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def attention_in_words(module: GlandAttention, z: np.ndarray) -> np.ndarray:
    """models.md's attention for one image z (2c, H, W), sentence by sentence, in float64."""
    weights = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def conv(name: str, x: np.ndarray) -> np.ndarray:  # a 1x1 convolution of (c, length)
        return weights[f"{name}.weight"][:, :, 0, 0] @ x + weights[f"{name}.bias"][:, None]

    height, width = z.shape[1:]
    means = np.concatenate([z.mean(2), z.mean(1)], axis=1)  # over the width, then over the height: (2c, H + W)
    squeezed = conv("squeeze.0", means)
    groups = squeezed.reshape(8, -1)
    groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    scale, shift = weights["squeeze.1.weight"], weights["squeeze.1.bias"]
    y = groups.reshape(squeezed.shape) * scale[:, None] + shift[:, None]
    y = np.where(y > 0, y, 0.2 * y)
    a_h, a_w = sigmoid(conv("height", y[:, :height])), sigmoid(conv("width", y[:, height:]))
    assert a_w.shape[1] == width
    return a_h[:, :, None] * a_w[:, None, :]


# m = max(8, 2c // 32): for c = 4 it is 8, one channel a group; for c = 256 it is 16, two channels a group.
@pytest.mark.parametrize(("channels", "squeezed"), [(4, 8), (256, 16)])
def test_attention_in_the_words_of_the_description(channels, squeezed):
    module = randomised(GlandAttention(channels), seed=1)
    assert module.squeeze[0].out_channels == squeezed
    z = np.random.default_rng(2).normal(size=(2 * channels, 2, 3))
    with torch.inference_mode():
        found = module(torch.from_numpy(z)[None].float())[0].numpy()
    assert found == pytest.approx(attention_in_words(module, z), abs=1e-5)


def test_attention_guide_adds_its_attention():
    # Sigmoids of 0 are 1/2, so a = 1/2 * 1/2 = 1/4 everywhere: added, so that even x = 0 turns 0.25.
    net = create_model("trfeplus", width=2)
    for parameter in net.guide.parameters():
        nn.init.zeros_(parameter)
    x = torch.tensor([0.0, 1.0, 2.0, -8.0]).view(1, 4, 1, 1)
    assert guided(net, x, prior=torch.ones(1, 4, 1, 1)) == [0.25, 1.25, 2.25, -7.75]


def test_attention_guide_puts_x_before_the_prior():
    net = create_model("trfeplus", width=2).eval()
    randomised(net.guide, seed=3)
    x, prior = np.random.default_rng(4).normal(size=(2, 4, 3, 2)).astype(np.float32)
    expected = x + attention_in_words(net.guide.levels[2], np.concatenate([x, prior]))
    found = guided(net, torch.from_numpy(x)[None], torch.from_numpy(prior)[None])
    assert found == pytest.approx(expected.flatten(), abs=1e-5)


# Nearest-neighbour halving keeps the top left pixel of each 2 x 2, one halving after another: at 1/8 of 16 x 16 that
# leaves rows and columns 0 and 8, at 1/4 every fourth, at 1/2 every second.
@pytest.mark.parametrize(("level", "step"), [(0, 8), (1, 4), (2, 2)])
def test_mask_prior_keeps_the_right_pixels(level, step):
    share = (torch.arange(256).view(1, 1, 16, 16) + 0.5) / 256  # pixel (r, c) has P = (16 r + c + 0.5) / 256
    prior = MaskGuide(1).prior([], torch.logit(share))[level]
    expected = [16 * row + column for row in range(0, 16, step) for column in range(0, 16, step)]
    assert prior.shape == (1, 1, 16 // step, 16 // step)
    assert (prior * 256 - 0.5).flatten().tolist() == pytest.approx(expected, abs=1e-3)


# --- where the guide acts ----------------------------------------------------------------------------------


def record(module: nn.Module, calls: list) -> None:
    module.register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))


@pytest.mark.parametrize("name", GUIDED)
@torch.inference_mode()
def test_guide_acts_at_an_eighth_a_quarter_and_a_half(name):
    net = create_model(name, width=2).eval()
    decoder = net.decoders["nodule"]
    guide, convs, ups, gland, head = [], [], [], [], []
    record(net.guide, guide)
    record(net.heads["nodule"], head)
    for conv, up, other in zip(decoder.convs, decoder.ups, net.decoders["gland"].convs, strict=True):
        record(conv, convs)
        record(up, ups)
        record(other, gland)
    logits = net(torch.randn(1, 3, 32, 48))["gland"]

    assert [inputs[0] for inputs, _ in guide] == [0, 1, 2]
    # Width 2: 16, 8 and 4 channels at 1/8, 1/4 and 1/2 of 32 x 48.
    assert [tuple(output.shape[1:]) for _, output in guide] == [(16, 4, 6), (8, 8, 12), (4, 16, 24)]
    for level, ((_, x, prior), output) in enumerate(guide):
        assert x is convs[level][1]  # after the double convolution
        assert ups[level + 1][0][0] is output  # and the guided feature goes up
        if name == "trfe":
            step = (8, 4, 2)[level]
            assert torch.equal(prior, torch.sigmoid(logits)[:, :, ::step, ::step])
        else:
            assert prior is gland[level][1]
    assert head[0][0][0] is convs[3][1]  # no guide at full scale


@pytest.mark.parametrize("name", ["mtnet", *GUIDED])
@torch.inference_mode()
def test_only_a_guide_lets_the_gland_decoder_reach_the_nodule(name):
    torch.manual_seed(0)
    net, image = create_model(name, width=4).eval(), torch.randn(1, 3, 32, 32)
    before = net(image)
    for module in (net.decoders["gland"], net.heads["gland"]):
        for parameter in module.parameters():
            parameter += 0.1
    after = net(image)
    assert not torch.equal(before["gland"], after["gland"])
    assert torch.equal(before["nodule"], after["nodule"]) == (name == "mtnet")


@pytest.mark.parametrize("name", GUIDED)
@torch.inference_mode()
def test_the_gland_answer_does_not_depend_on_the_nodule_decoder(name):
    torch.manual_seed(0)
    net, image = create_model(name, width=4).eval(), torch.randn(1, 3, 32, 32)
    before = net(image)["gland"]
    for module in (net.decoders["nodule"], net.heads["nodule"], net.guide):
        for parameter in module.parameters():
            parameter += 0.1
    assert torch.equal(net(image)["gland"], before)


# --- what parity cannot see --------------------------------------------------------------------------------


# Channels of the double convolutions: width * (1, 2, 4, 8, 16) down, width * (8, 4, 2, 1) up in two decoders, with two
# norms each; three attentions have 8 groups.
# Width 8: 8, 16, 32, 64, 128 channels. 8 groups in one double convolution down and one in each decoder = 6 norms,
#   16 groups likewise, 32 in 3 + 2 * 2 double convolutions = 14 norms.
# Width 16: 16 groups in 6 norms, 32 in (4 + 2 * 3) * 2 = 20. Width 64: 32 in all (5 + 2 * 4) * 2 = 26.
@pytest.mark.parametrize(
    ("width", "expected"), [(8, {8: 6 + 3, 16: 6, 32: 14}), (16, {8: 3, 16: 6, 32: 20}), (64, {8: 3, 32: 26})]
)
def test_group_norm_has_32_groups_or_one_a_channel(width, expected):
    norms = modules_of(on_meta("trfeplus", width=width), nn.GroupNorm)
    assert Counter(norm.num_groups for norm in norms) == expected
    assert all(norm.eps == 1e-5 and norm.affine for norm in norms)


@pytest.mark.parametrize("width", [8, 64])
def test_attention_norm_has_8_groups(width):
    norms = modules_of(on_meta("trfeplus", width=width).guide, nn.GroupNorm)
    assert [norm.num_groups for norm in norms] == [8, 8, 8]


def test_trfeplus_slope_and_dropout():
    net = on_meta("trfeplus", width=8)
    assert [module.negative_slope for module in modules_of(net, nn.LeakyReLU)] == [0.2] * 3
    assert [module.p for module in modules_of(net, nn.Dropout)] == [0.5] * 2
    # Linear, BatchNorm1d, ReLU, Dropout, twice, then Linear; no norm but these is a BatchNorm.
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(module) for module in net.size_head] == [*kinds, *kinds, nn.Linear]
    assert len(modules_of(net, nn.BatchNorm2d)) == 0


def test_only_trfeplus_drops_out_and_predicts_the_size():
    assert [name for name in NAMES if modules_of(on_meta(name, width=8), nn.Dropout)] == ["trfeplus"]
    assert [name for name in NAMES if on_meta(name, width=8).size_head is not None] == ["trfeplus"]


# Double convolutions: 5 down and 4 a decoder, two norms each; trfe2's three guides have two each.
@pytest.mark.parametrize(
    ("name", "count"), [("unet", 18), ("mtnet", 26), ("trfe", 26), ("trfe1", 26), ("trfe2", 26 + 6)]
)
def test_batch_norm_has_pytorchs_defaults(name, count):
    norms = modules_of(on_meta(name, width=8), nn.BatchNorm2d)
    assert len(norms) == count
    for norm in norms:
        assert (norm.eps, norm.momentum, norm.affine, norm.track_running_stats) == (1e-5, 0.1, True, True)


def test_batch_norm_starts_as_the_identity():
    for norm in modules_of(create_model("trfe2", width=4), nn.BatchNorm2d):
        assert torch.all(norm.weight == 1)
        assert torch.all(norm.bias == 0)


def test_double_conv_applies_conv_norm_relu_twice():
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(module) for module in double_conv(3, 4)] == kinds * 2


# --- initialisation ----------------------------------------------------------------------------------------


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan-in, fan-out) of a weight (out, in, ...)."""
    field = math.prod(weight.shape[2:])
    return weight.shape[1] * field, weight.shape[0] * field


def root_mean_square(weight: Tensor) -> float:
    return weight.square().mean().sqrt().item()


def assert_normal(weight: Tensor, std: float) -> None:
    """Zero-mean normal numbers: the measured std of n of them is off by std / sqrt(2 n), of which 5 are allowed."""
    assert root_mean_square(weight) == pytest.approx(std, rel=5 / math.sqrt(2 * weight.numel()))
    if weight.numel() > 5000:  # a uniform distribution of this std ends at sqrt(3) std
        assert weight.abs().max() > 3 * std


def assert_pytorch_default(module: nn.Module) -> None:
    """Weights and biases uniform within 1 / sqrt(fan-in), the weights' std being that over sqrt(3)."""
    bound = 1 / math.sqrt(fans(module.weight)[0])
    assert module.weight.abs().max() <= bound
    tolerance = 5 / math.sqrt(2 * module.weight.numel())
    assert root_mean_square(module.weight) == pytest.approx(bound / math.sqrt(3), rel=tolerance)
    assert 0 < module.bias.abs().max() <= bound


@pytest.fixture(params=RELEASED)
def fresh(request) -> tuple[str, nn.Module]:
    torch.manual_seed(5)
    return request.param, create_model(request.param, width=16)


def test_convolutions_start_as_released(fresh):
    name, net = fresh
    for conv in modules_of(net, nn.Conv2d):
        fan_in, fan_out = fans(conv.weight)
        if name == "trfeplus":
            assert_pytorch_default(conv)
        elif name == "unet":
            assert_normal(conv.weight, math.sqrt(2 / fan_out))
            assert 0 < conv.bias.abs().max() <= 1 / math.sqrt(fan_in)
        else:
            assert_normal(conv.weight, math.sqrt(2 / (fan_in + fan_out)))
            assert torch.all(conv.bias == 0)


def test_transposed_convolutions_and_linear_layers_start_as_pytorch_makes_them(fresh):
    _, net = fresh
    layers = modules_of(net, (nn.ConvTranspose2d, nn.Linear))
    assert len(layers) == 4 * len(net.tasks) + (3 if net.size_head else 0)
    for layer in layers:
        assert_pytorch_default(layer)


# --- the calls that other programs need --------------------------------------------------------------------


def test_the_eight_names_are_listed_once():
    assert set(NAMES) <= set(list_models())
    assert len(set(list_models())) == len(list_models())


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_outputs_of_an_oblong_image(name):
    outputs = create_model(name, width=8).eval()(torch.randn(2, 3, 32, 48))
    expected = {"nodule": (2, 1, 32, 48)}
    if name != "unet":
        expected["gland"] = (2, 1, 32, 48)
    if name == "trfeplus":
        expected["size"] = (2, 1)
        assert outputs["size"].min() >= 0
        assert outputs["size"].max() <= 1
    assert {task: tuple(output.shape) for task, output in outputs.items()} == expected


@torch.inference_mode()
def test_unet_can_learn_glands():
    net = create_model("unet", width=4, tasks=("gland",)).eval()
    assert net.tasks == ("gland",)
    assert list(net(torch.randn(1, 3, 16, 16))) == ["gland"]


# Parameters of a double conv i -> o with BatchNorm: 9 i o + o, 2 o, 9 o^2 + o, 2 o = 9 i o + 9 o^2 + 6 o.
# Encoder at width w: 9 * 3 w + 9 w^2 + 6 w, then for o = 2 w, 4 w, 8 w, 16 w (i = o / 2) 13.5 o^2 + 6 o;
#   sums of o^2 and o: 340 w^2 and 30 w. Together 9 w^2 + 33 w + 4590 w^2 + 180 w = 4599 w^2 + 213 w.
# Decoder at o = 8 w, 4 w, 2 w, w: transposed conv 4 * 2 o * o + o, double conv (i = 2 o) 27 o^2 + 6 o: 35 o^2 + 7 o;
#   sums of o^2 and o: 85 w^2 and 15 w. Together 2975 w^2 + 105 w. Head: w + 1.
@pytest.mark.parametrize("width", [1, 8, 64])
def test_parameter_count_follows_the_width(width):
    decoder = 2975 * width**2 + 106 * width + 1
    unet = 4599 * width**2 + 213 * width + decoder
    assert parameter_count(on_meta("unet", width=width)) == unet
    for name in ("mtnet", "trfe", "trfe1"):
        assert parameter_count(on_meta(name, width=width)) == unet + decoder
    # Three guides on c = 8 w, 4 w, 2 w (sums of c^2 and c: 84 w^2 and 14 w):
    #   trfe2 [2 c^2 + c, 2 c, c^2 + c, 2 c], trfe-b [c^2 + c], trfe-c [2 c^2 + c].
    guides = {"trfe2": 3 * 84 * width**2 + 6 * 14 * width, "trfe-b": 84 * width**2 + 14 * width}
    guides["trfe-c"] = 2 * 84 * width**2 + 14 * width
    for name, count in guides.items():
        assert parameter_count(on_meta(name, width=width)) == unet + decoder + count


def test_width_is_64_unless_said_otherwise():
    assert create_model.__defaults__[0] == 64
    assert on_meta("mtnet").encoder.stages[0][0].out_channels == 64


@pytest.mark.parametrize(("typed", "meant"), [("trfe_plus", "trfeplus"), ("mt-net", "mtnet"), ("trfe22", "trfe2")])
def test_unknown_name_answers_with_the_nearest(typed, meant):
    with pytest.raises(UserError, match=rf"no model named '{typed}'\. Did you mean {meant}\?") as caught:
        create_model(typed)
    for name in NAMES:
        assert name in str(caught.value)


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(UserError, match="no model named 'zzz'") as caught:
        create_model("zzz")
    assert "Did you mean" not in str(caught.value)
    assert ", ".join(NAMES[:3]) in str(caught.value)


@pytest.mark.parametrize("width", [4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("name", NAMES)
def test_widths_that_suit_every_model(name, width):
    assert on_meta(name, width=width).encoder.stages[0][0].out_channels == width


@pytest.mark.parametrize(("name", "width"), [("unet", 0), ("trfe", 0), ("trfeplus", 0), ("unet", -4)])
def test_no_width_below_one(name, width):
    with pytest.raises(UserError, match=f"{name} cannot have -width {width}"):
        create_model(name, width=width)


# 48 = 4 * 12 channels do not divide into 32 groups. At width 96 the last attention squeezes its 2 * 192
# channels to 384 // 32 = 12, which do not divide into 8.
@pytest.mark.parametrize("width", [12, 96])
def test_width_that_no_group_norm_divides(width):
    with pytest.raises(UserError, match=f"trfeplus cannot have -width {width}") as caught:
        on_meta("trfeplus", width=width)
    # The advice must not recommend what was just refused.
    assert "multiples of 32" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("unet", ("nodule", "gland")), ("mtnet", ("nodule",)), ("unet", ("liver",)), ("trfe", ("gland", "gland"))],
)
def test_tasks_that_do_not_suit_the_network(name, tasks):
    with pytest.raises(UserError, match=f"{name} has . task"):
        create_model(name, width=4, tasks=tasks)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 4, 32, 32), (32, 32)])
def test_input_that_is_no_batch_of_colour_images(shape):
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)") as caught:
        create_model("unet", width=4)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


# 100 is nearest to 6 * 16 = 96 and 130 to 8 * 16 = 128; 5 is nearest to 0, but the smallest size is 16.
@pytest.mark.parametrize(
    ("sides", "suggestion"), [((100, 130), "96 x 128"), ((32, 41), "32 x 48"), ((5, 32), "16 x 32")]
)
def test_input_whose_sides_do_not_halve_four_times(sides, suggestion):
    net = create_model("unet", width=4).eval()
    with pytest.raises(ValueError, match=f"multiples of 16, got {sides[0]} x {sides[1]}; {suggestion} would work"):
        net(torch.zeros(1, 3, *sides))
    height, width = (int(side) for side in suggestion.split(" x "))
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, height, width))["nodule"].shape == (1, 1, height, width)


# --- weights from one network to another -------------------------------------------------------------------


@torch.inference_mode()
def test_a_gland_unet_becomes_a_nodule_unet():
    gland = create_model("unet", width=4, tasks=("gland",)).eval()
    nodule = create_model("unet", width=4).eval()
    image = torch.randn(1, 3, 16, 16)
    assert transfer(gland, nodule, strict=True) == len(gland.state_dict())
    assert torch.equal(nodule(image)["nodule"], gland(image)["gland"])


@torch.inference_mode()
def test_a_gland_unet_gives_mtnet_its_gland_branch_alone():
    torch.manual_seed(0)
    gland, both = create_model("unet", width=4, tasks=("gland",)).eval(), create_model("mtnet", width=4).eval()
    image, before = torch.randn(1, 3, 16, 16), both.decoders["nodule"].ups[0].weight.clone()
    assert transfer(gland, both) == len(gland.state_dict())
    assert torch.equal(both(image)["gland"], gland(image)["gland"])
    assert torch.equal(both.decoders["nodule"].ups[0].weight, before)


def test_strict_transfer_needs_every_tensor():
    with pytest.raises(UserError, match="weights do not fit") as caught:
        transfer(create_model("unet", width=4), create_model("mtnet", width=4), strict=True)
    # Tensors of mtnet: 13 double convolutions of 2 * (2 + 5), 8 transposed convolutions and 2 heads of 2: 202;
    # of unet: 9 * 14 + 5 * 2 = 136, all of which fit.
    assert "136 of 202 tensors" in str(caught.value)


def test_transfer_from_another_width_is_refused():
    # All that agrees are the counters of the norms and the head's one bias: no weights to speak of.
    with pytest.raises(UserError, match="weights do not fit"):
        transfer(create_model("unet", width=4), create_model("unet", width=8))
