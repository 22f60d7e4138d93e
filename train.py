"""Train a network of the table, by the released recipe unless told otherwise.

python train.py -fold 0 -model_name trfe -dataset TATN -gpu 0
"""

import argparse
import logging
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dataloaders import TEST_OF, TESTING, tasks_to_train, training_samples
from dataloaders.datasets import EpochBatches, Reader, TrainSet, ValidationSet, collate
from dataloaders.samples import Sample
from dataloaders.transforms import denormalise
from model import create_model, network, restore, transfer
from model.recompute import recompute
from utils.device import Compute, choose_compute
from utils.engine import answer, learning_rate, seed_epoch, train_one_epoch, validate
from utils.errors import UserError, run_script
from utils.losses import CRITERIA
from utils.options import parse_train_args
from utils.parallel import Ranks, processes, synchronise_batch_norm
from utils.run import Onlooker, Run, pretrained_weights
from utils.visual import PREDICTED, TRUE, draw_contours, grid


def main() -> None:
    with processes() as ranks:
        args, checkpoint = parse_train_args()
        compute = choose_compute(ranks.gpu(args.gpu), args.precision, args.compile)
        tasks = tasks_to_train(args.dataset, args.model_name, network(args.model_name).tasks)
        reader = Reader(args.input_size, args.mask_rule)
        with ranks.first_alone():
            items, val_samples = training_samples(args.dataset, tasks, args.data_root, args.fold)
        if args.check_data:
            return check_data(args, reader, items, val_samples)
        reader.check([sample for item in items for sample in item] + val_samples)
        print(reader)

        net = build_network(args, tasks, checkpoint, compute, ranks)
        loader = training_loader(args, items, reader, compute, ranks)
        run = open_run(args, ranks)
        describe(args, run, net, tasks, len(items), len(val_samples), compute, ranks)
        train(args, run, net, loader, ValidationSet(val_samples, reader), compute, ranks, checkpoint)


def train(
    args: argparse.Namespace,
    run: Run,
    net: nn.Module,
    loader: DataLoader,
    validation: ValidationSet,
    compute: Compute,
    ranks: Ranks,
    checkpoint: dict | None,
) -> None:
    """All epochs: a step of the schedule where one is due, an epoch of training, validation, the checkpoints."""
    forward = ranks.wrapped(compute.for_training(net), compute.device)
    checkpoint = checkpoint if args.resume_epoch else None
    first, best = (checkpoint["epoch"], checkpoint["best"]) if checkpoint else (0, -1.0)
    optimizer = new_optimizer(args, net, first)
    if first % args.update_lr_every:
        optimizer.load_state_dict(checkpoint["optimizer"])
    run.open_logs(first, first * len(loader))
    facts = {"model": {"name": args.model_name, "width": args.width, "tasks": list(net.tasks)}, "args": plain(args)}
    done = first
    try:
        for epoch in range(first, args.nepochs):
            if epoch % args.update_lr_every == 0:
                optimizer = new_optimizer(args, net, epoch)
            losses = run_epoch(args, run, forward, loader, optimizer, compute, ranks, epoch)
            scores = validate(net, validation, compute, ranks) if args.use_test else {}
            improved = scores.get("iou", best) > best
            best = max(best, scores.get("iou", best))

            row = log_row(args, losses, scores, epoch)
            run.log_epoch(row, (epoch + 1) * len(loader))
            if args.use_test:
                run.log_image("validation", validation_grid(net, validation, compute), (epoch + 1) * len(loader))
            facts |= {"epoch": epoch + 1, "best": best}
            state = {"optimizer": optimizer.state_dict()}
            if improved:
                run.save("best", net, facts)
            if args.save_every and (epoch + 1) % args.save_every == 0:
                run.save(f"epoch-{epoch + 1}", net, facts | state)
            # Last of all: from here the epoch counts as done, and whatever was written before can be repeated.
            run.save("last", net, facts | state)
            done = epoch + 1
            print(epoch_line(args, row, best), flush=True)
    except (KeyboardInterrupt, UserError, RuntimeError):
        if done:
            print(
                f"\nStopped; {run.checkpoint('last')} holds epoch {done}. Go on with: "
                f"python train.py -load_path {run.checkpoint('last')}"
            )
        raise
    finally:
        run.close_logs()
    which = "best" if run.checkpoint("best").is_file() else "last"
    print(f"Done. Evaluate with: python eval.py -load_path {run.checkpoint(which)}")


def run_epoch(
    args: argparse.Namespace,
    run: Run,
    net: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    ranks: Ranks,
    epoch: int,
) -> dict[str, float]:
    """One epoch of training with its own random state; answers the mean losses."""
    loader.batch_sampler.epoch = epoch
    seed_epoch(args.seed, epoch, ranks.rank)

    def on_step(step: int, losses: dict[str, float]) -> None:
        if (step + 1) % args.log_every == 0:
            run.log_scalars("batch", losses, epoch * len(loader) + step + 1)

    progress = epoch / args.nepochs
    return train_one_epoch(
        net, loader, CRITERIA[args.criterion], optimizer, compute, progress, args.naver_grad, on_step, ranks
    )


def build_network(
    args: argparse.Namespace, tasks: tuple[str, ...], checkpoint: dict | None, compute: Compute, ranks: Ranks
) -> nn.Module:
    """A new network, with the weights of -load_path or, as far as they fit, of -pretrain."""
    torch.manual_seed(args.seed)
    net = create_model(args.model_name, args.width, tasks)
    if checkpoint is not None:
        transfer(restore(checkpoint, args.model_name), net, strict=True)
    elif (source := pretrained_weights(args)) is not None:
        copied = transfer(restore(source, None if "model" in source else args.model_name), net)
        print(f"-pretrain: {copied} of {len(net.state_dict())} tensors from {source['path']}")
    if args.save_memory:
        recompute(net.full_size_stages())
    return synchronise_batch_norm(net, compute.device) if args.sync_bn and ranks.world > 1 else net


def new_optimizer(args: argparse.Namespace, net: nn.Module, epoch: int) -> torch.optim.Optimizer:
    """SGD at the epoch's rate; the release makes a new one at each step of it, so that the momentum starts afresh."""
    lr = learning_rate(args.lr, epoch, args.nepochs, args.update_lr_every)
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=args.momentum, weight_decay=args.weight_decay)


def open_run(args: argparse.Namespace, ranks: Ranks) -> Run:
    """The run folder: that of the run that goes on, or a new one; of several processes the first writes it."""
    if args.resume_epoch:
        folder = args.load_path.parent
    elif ranks.writes:
        folder = ranks.same(Run.create(args.run_root, args.run_id, args.model_name).folder)
    else:
        folder = ranks.same(None)
    return (Run if ranks.writes else Onlooker)(folder, args.model_name)


def training_loader(
    args: argparse.Namespace, items: list[tuple[Sample, ...]], reader: Reader, compute: Compute, ranks: Ranks
) -> DataLoader:
    """Batches of training items in an order of each epoch's own; of several processes each has its part of them."""
    if len(items) < args.batch_size:
        raise UserError(
            f"-batch_size {args.batch_size}: there are only {len(items)} training items; use that or fewer."
        )
    if args.batch_size % ranks.world:
        raise UserError(
            f"-batch_size {args.batch_size} cannot be split over {ranks.world} processes: use a multiple of that."
        )
    return DataLoader(
        TrainSet(items, reader, args.seed),
        batch_sampler=EpochBatches(len(items), args.batch_size, args.seed, ranks.rank, ranks.world),
        collate_fn=collate,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
        pin_memory=compute.device.type == "cuda",
        # Of its own, so that loading takes nothing from the random state of dropout.
        generator=torch.Generator(),
    )


def check_data(
    args: argparse.Namespace, reader: Reader, items: list[tuple[Sample, ...]], val_samples: list[Sample]
) -> None:
    """-check_data: read everything, the test images too, and say what there is."""
    parts = {"training": [sample for item in items for sample in item], "validation": val_samples}
    if args.dataset in TEST_OF:
        parts["test"] = TESTING[TEST_OF[args.dataset]](args.data_root)
    for part, samples in parts.items():
        reader.check(samples)
        tasks = [sample.task for sample in samples]
        counts = ", ".join(f"{tasks.count(task)} {task} images" for task in dict.fromkeys(tasks))
        print(f"{part}: {counts}, all sound")


def describe(
    args: argparse.Namespace,
    run: Run,
    net: nn.Module,
    tasks: tuple[str, ...],
    items: int,
    vals: int,
    compute: Compute,
    ranks: Ranks,
) -> None:
    """Say what is about to happen, on the terminal and in args.json."""
    what = "pairs" if len(tasks) > 1 else "images"
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{args.model_name} (width {args.width}, {parameters / 1e6:.2f} M parameters) learns {' and '.join(tasks)}s")
    print(
        f"{args.dataset} fold {args.fold}: {items} training {what}, {vals} validation images, "
        f"{args.input_size} x {args.input_size}, mask rule {args.mask_rule}"
    )
    print(
        f"SGD: lr {args.lr:g}, momentum {args.momentum:g}, weight decay {args.weight_decay:g}; {args.criterion} loss; "
        f"batches of {args.batch_size} {what}; {args.nepochs} epochs"
    )
    many = f"{ranks.world} processes, each: " if ranks.world > 1 else ""
    print(f"{many}{compute}; everything is written to {run.folder}", flush=True)
    facts = {"device": compute.name, "bf16": compute.bf16, "processes": ranks.world}
    run.describe(plain(args), parameters=parameters, **facts, seed=args.seed)


def log_row(
    args: argparse.Namespace, losses: dict[str, float], scores: dict[str, float], epoch: int
) -> dict[str, float]:
    """A row of log.csv: epoch counted from 1, learning rate, losses, validation."""
    lr = learning_rate(args.lr, epoch, args.nepochs, args.update_lr_every)
    val = {f"val_{name}": scores[name] for name in ("iou", "dice") if name in scores}
    return {"epoch": epoch + 1, "lr": lr, **losses, **val}


def epoch_line(args: argparse.Namespace, row: dict[str, float], best: float) -> str:
    """The row as a line for the terminal."""
    values = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("epoch", "lr"))
    line = f"epoch {row['epoch']}/{args.nepochs}  lr {row['lr']:.2e}  {values}"
    return f"{line}  best {best:.4f}" if args.use_test else line


def validation_grid(net: nn.Module, validation: ValidationSet, compute: Compute) -> np.ndarray:
    """A fixed choice of eight validation images with true and predicted contours."""
    chosen = np.linspace(0, len(validation) - 1, min(8, len(validation))).astype(int)
    images, batch = validation.batch([int(number) for number in chosen])
    task = next(iter(batch.masks))
    with torch.inference_mode():
        logits = answer(compute.uncompiled.for_inference(net, [task]), images, compute)[task]
    return grid(
        [
            draw_contours(denormalise(image), [(mask[0].numpy() > 0, TRUE), (found[0].numpy() >= 0, PREDICTED)])
            for image, mask, found in zip(images, batch.masks[task], logits, strict=True)
        ]
    )


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as values that a checkpoint and a JSON can hold."""
    return {
        name: value if isinstance(value, int | float | str | None) else str(value) for name, value in vars(args).items()
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_script(main)
