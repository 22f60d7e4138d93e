"""Evaluate a checkpoint on test images, under the clean and the authors' protocol in one pass.

python eval.py -load_path ./run/run_0/trfe_best.pth
"""

import argparse
import logging

from torch import Tensor, nn

from dataloaders import TESTING
from dataloaders.datasets import EvalImage, EvalSet
from model import network, read_checkpoint, restore
from utils.device import choose_compute
from utils.engine import assess
from utils.errors import run_script
from utils.options import complete_tested, eval_parser
from utils.parallel import Ranks, processes
from utils.report import Row, evaluation_table, score_batch, write_summary


def main() -> None:
    with processes() as ranks:
        evaluate(eval_parser().parse_args(), ranks)


def evaluate(args: argparse.Namespace, ranks: Ranks) -> None:
    compute = choose_compute(ranks.gpu(args.gpu), args.precision, args.compile)
    checkpoint = read_checkpoint(args.load_path)
    net = restore(checkpoint, args.model_name)
    compute = compute.limited_to(net)
    facts = complete(args, net, checkpoint)
    with ranks.first_alone():
        samples = TESTING[args.test_dataset](args.data_root)
    images = EvalSet(samples, args.input_size)

    def finish(outputs: dict[str, Tensor], batch: list[EvalImage]) -> list[Row]:
        return score_batch(args.save_dir, outputs, batch, net.tasks)

    rows = assess(net, images, args.batch_size, finish, compute, args.num_workers, ranks=ranks)
    if not ranks.writes:
        return
    summary = write_summary(args.save_dir, rows, {**facts, "compute": str(compute)})
    print(evaluation_table(summary, network(facts["model"]).published))
    print(f"per_image.csv, summary.json, masks/ and overlays/ are in {args.save_dir}")


def complete(args: argparse.Namespace, net: nn.Module, checkpoint: dict) -> dict:
    """Fill in what the checkpoint knows and make the output folder; answers what a reader of the result must know."""
    name, trained = complete_tested(args, net.tasks, checkpoint), checkpoint.get("args", {})
    args.fold = trained.get("fold") if args.fold is None else args.fold
    args.save_dir = args.save_dir or args.load_path.parent / f"eval-{args.test_dataset}"
    return {
        "model": name,
        "checkpoint": str(args.load_path),
        "epoch": checkpoint.get("epoch"),
        "test_dataset": args.test_dataset,
        "fold": args.fold,
        "input_size": args.input_size,
        "training": {
            key: trained[key] for key in ("dataset", "width", "mask_rule", "seed", "nepochs") if key in trained
        },
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_script(main)
