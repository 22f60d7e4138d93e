"""Trading time for memory in training: features that are computed again for the gradient instead of being kept."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(stages: Iterable[nn.Module]) -> None:
    """Have each stage keep only its input for the gradient. What is learned stays the same, to the last bit."""
    for stage in stages:
        stage.forward = partial(_recomputed, stage, stage.forward)


def _recomputed(stage: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    return checkpoint(
        forward,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # there is no dropout in these stages
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(stage)),
    )


@contextlib.contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    """Running statistics of the BatchNorms in `stage` stay: a batch that is computed twice counts once."""
    norms = [norm for norm in stage.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
