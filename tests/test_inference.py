"""Networks made ready to answer, layers written for speed, and the threads that assess images with them."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import create_model, list_models
from model.blocks import GroupNorm, UpConv
from model.inference import for_inference, pack
from model.recompute import recompute
from utils.device import Compute, choose_compute, reuse_memory
from utils.engine import assess

CPU = Compute(torch.device("cpu"))


def trained(name: str, width: int = 8) -> nn.Module:
    """A network whose BatchNorms have statistics of their own, in eval mode."""
    torch.manual_seed(3)
    net = create_model(name, width)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- ready for inference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_models())
def test_folding_changes_the_answer_by_rounding_only(name: str) -> None:
    net = trained(name)
    with torch.inference_mode():
        expected, found = net(images()), for_inference(net)(images())
    assert expected.keys() == found.keys()
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list_models())
def test_packing_changes_the_answer_by_rounding_only(name: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16")
    ready = for_inference(trained(name), dtype)
    image = images(3, 48).to(dtype)
    with torch.inference_mode():
        expected = ready(image)
        packed = pack(ready)
        found = packed(image)
    assert not any(isinstance(module, nn.Conv2d) for module in packed.modules())
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, rtol=tolerance, atol=tolerance)


def test_packing_takes_only_the_relu_that_follows_a_convolution() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 3, 1), nn.GroupNorm(1, 3), nn.ReLU(), nn.Conv2d(3, 2, 3, 2, 1, bias=False))
    net = nn.Sequential(block, nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), nn.Identity(), nn.ReLU())
    image = torch.randn(1, 2, 8, 8)
    with torch.inference_mode():
        expected = net(image)
        found = pack(net)(image)
    assert isinstance(block[2], nn.ReLU)
    assert not isinstance(net[3], nn.ReLU)
    torch.testing.assert_close(found, expected)


def test_folding_leaves_no_batch_norm_of_a_convolution_and_the_network_itself_as_it_was() -> None:
    net = trained("trfe2")
    before = copy.deepcopy(net.state_dict())
    ready = for_inference(net.train())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ready.modules())
    assert not ready.training
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["trfe", "trfe2", "trfeplus"])
def test_bfloat16_stays_within_2e_2_of_float32(name: str) -> None:
    net = trained(name, 16)
    compute = Compute(torch.device("cpu"), bf16=True)
    ready = compute.for_inference(net)
    assert compute.images(images()).dtype == torch.bfloat16
    with torch.inference_mode():
        expected, found = net(images()), ready(compute.images(images()))
    for task in net.tasks:
        assert found[task].dtype == torch.bfloat16
        assert (found[task].float().sigmoid() - expected[task].sigmoid()).abs().max() < 2e-2


# Of the gland's decoder, unguided networks need nothing for a nodule, guides by features the first three steps,
# guides by the map all four and the head.
@pytest.mark.parametrize(
    ("name", "steps", "heads"), [("mtnet", 0, 0), ("trfe", 4, 1), ("trfe1", 3, 0), ("trfe2", 3, 0), ("trfeplus", 3, 0)]
)
def test_layers_that_a_nodule_does_not_need_are_not_run(name: str, steps: int, heads: int) -> None:
    net = trained(name)
    ready = for_inference(net, tasks=["nodule"])
    run = {"step": 0, "head": 0}

    def count(kind: str) -> None:
        run[kind] += 1

    for conv in ready.decoders["gland"].convs:
        conv.register_forward_hook(lambda *_: count("step"))
    ready.heads["gland"].register_forward_hook(lambda *_: count("head"))
    with torch.inference_mode():
        found, expected = ready(images()), net(images())
    assert "gland" not in found
    assert (run["step"], run["head"]) == (steps, heads)
    torch.testing.assert_close(found["nodule"], expected["nodule"], rtol=1e-4, atol=1e-5)
    assert net.tasks == ("nodule", "gland")


# --- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_up_convolution_is_the_transposed_one(training: bool) -> None:
    torch.manual_seed(0)
    up = UpConv(6, 4).train(training)
    x = torch.randn(2, 6, 5, 3, requires_grad=True)
    grad = torch.randn(2, 4, 10, 6)

    def results(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad(y, [x, up.weight, up.bias], grad)]

    expected = results(F.conv_transpose2d(x, up.weight, up.bias, stride=2))
    for found, value in zip(results(up(x)), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_up_convolution_adds_its_bias_in_the_precision_of_the_features() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert UpConv(4, 2)(torch.randn(1, 4, 2, 2)).dtype == torch.bfloat16


def test_gradient_of_group_norm_in_bfloat16_is_that_of_float32() -> None:
    torch.manual_seed(0)
    norm = GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 16, 8, 6).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().float().requires_grad_()
    grad = torch.randn(3, 16, 8, 6).bfloat16()
    parameters = [norm.weight, norm.bias]

    y, expected = norm(x), F.group_norm(exact, 4, *parameters)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2**-7, atol=1e-2)
    dx, *found = torch.autograd.grad(y, [x, *parameters], grad)
    exact_dx, *values = torch.autograd.grad(expected, [exact, *parameters], grad.float())
    assert dx.dtype == torch.bfloat16
    torch.testing.assert_close(dx.float(), exact_dx, rtol=2**-7, atol=2e-2)
    for gradient, value in zip(found, values, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "trfe", "trfeplus"])
def test_recomputing_learns_the_same_to_the_last_bit(name: str) -> None:
    def step(save_memory: bool) -> nn.Module:
        torch.manual_seed(5)
        net = create_model(name, 8).train()
        if save_memory:
            recompute(net.full_size_stages())
        torch.manual_seed(6)
        for _ in range(2):
            sum(output.sum() for output in net(images()).values()).backward()
        return net

    kept, recomputed = step(False), step(True)
    assert kept.state_dict().keys() == recomputed.state_dict().keys()
    # BatchNorm's running statistics and its count of batches are among them.
    for one, other in zip(kept.state_dict().values(), recomputed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_recomputing_keeps_fewer_features() -> None:
    def kept(save_memory: bool) -> int:
        net, total = create_model("trfe", 8).train(), 0
        if save_memory:
            recompute(net.full_size_stages())

        def weigh(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
            net(images())
        return total

    # In each of the three stages both BatchNorms keep what goes in, both ReLUs what comes out, and the second
    # convolution what goes in: 5 tensors of 2 x 8 x 32 x 32 floats.
    assert kept(False) - kept(True) >= 3 * 5 * (2 * 8 * 32 * 32 * 4)


def test_a_recomputing_network_is_made_ready_like_any_other() -> None:
    net = trained("trfe")
    with torch.inference_mode():
        expected = for_inference(net)(images())
        recompute(net.full_size_stages())
        found = for_inference(net)(images())
    assert torch.equal(found["nodule"], expected["nodule"])


# --- assessing in threads ----------------------------------------------------------------------------------


class Numbers:
    """Image n is filled with n."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, numbers: range) -> tuple[Tensor, list[int]]:
        if 99 in numbers:
            raise ValueError("image 99")
        return torch.stack([torch.full((3, 16, 16), float(number)) for number in numbers]), list(numbers)


class Mean(nn.Module):
    """Answers each image's mean, early images later than the others."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        assert torch.is_inference_mode_enabled()
        threading.Event().wait(0.02 / (1 + float(image.mean())))
        return {"nodule": image.mean((1, 2, 3))}


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_come_in_the_order_of_the_images(threads: int, batch_size: int) -> None:
    before = torch.get_num_threads()
    seen = []

    def finish(outputs: dict[str, Tensor], numbers: list[int]) -> list[tuple[int, float]]:
        seen.append(len(numbers))
        return list(zip(numbers, outputs["nodule"].tolist(), strict=True))

    rows = assess(Mean(), Numbers(10), batch_size, finish, CPU, threads)
    assert rows == [(number, float(number)) for number in range(10)]
    assert max(seen) == batch_size
    assert torch.get_num_threads() == before


def test_an_error_in_one_thread_ends_the_assessment() -> None:
    done = []

    def finish(outputs: dict[str, Tensor], numbers: list[int]) -> list[int]:
        done.append(numbers)
        return numbers

    with pytest.raises(ValueError, match="image 99"):
        assess(Mean(), Numbers(10_000), 1, finish, CPU, 2)
    assert len(done) < 1_000


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assess(Mean(), Numbers(1), 1, lambda outputs, numbers: numbers, CPU, 3)
    assert asked == [2, 8]


# --- device ------------------------------------------------------------------------------------------------


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"-compile needs a C\+\+ compiler and there is no no-such-compiler"):
        choose_compute("cpu", compile=True)


def test_memory_is_kept_only_where_the_c_library_is_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> int:
            called.append((parameter, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Libc())
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    reuse_memory()
    assert called == []
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    reuse_memory()
    # From malloc.h: no block by mmap (M_MMAP_MAX is -4), nothing trimmed from the heap (M_TRIM_THRESHOLD is -1).
    assert called == [(-4, 0), (-1, -1)]
