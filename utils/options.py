"""The command line: flags with the release's names, each in a single- and a double-dash spelling."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dataloaders import TEST_OF, TESTING, TRAINING
from dataloaders.samples import MASK_RULES
from model import list_models, network
from model.checkpoint import read_trainable
from model.formats import FORMATS
from utils.device import PRECISIONS
from utils.errors import UserError
from utils.losses import CRITERIA
from utils.run import find_checkpoint

# The released recipes (README and scripts of the release), by number of tasks: batch size, learning rate.
# A batch of the two-task networks is 8 nodule images and their 8 gland images.
RECIPES = {1: (16, 1e-2), 2: (8, 1e-3)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}. See {self.prog} --help.")

    def _get_option_tuples(self, option_string: str) -> list:
        # Python 3.11 still takes -batch for -batch_size, whatever allow_abbrev says.
        return []


class _Group:
    """A titled group of flags; `add("lr", ...)` makes -lr and --lr, whose help shows the default."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self.group = parser.add_argument_group(title)

    def add(self, name: str, **settings: Any) -> None:
        if settings.get("action") != "store_true" and "%(default)" not in settings["help"]:
            if settings.get("default") is not None:
                settings["help"] += " (default: %(default)s)"
            settings.setdefault("metavar", settings["type"].__name__.upper() if "type" in settings else None)
        self.group.add_argument(f"-{name}", f"--{name}", **settings)


def _at_least(least: float, kind: type) -> Callable[[str], Any]:
    """A type for argparse: finite numbers from `least` on, whole ones where `kind` is int."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            expected = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {expected} of at least {least}, got {text}")
        return value

    convert.__name__ = "n" if kind is int else "x"
    return convert


natural = _at_least(1, int)
whole = _at_least(0, int)
quantity = _at_least(0, float)


def known_model(name: str) -> str:
    """A name of the table; the answer to another one has the nearest."""
    try:
        network(name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from error
    return name


known_model.__name__ = "name"


class _HelpFormatter(argparse.HelpFormatter):
    """Shows a flag as `-lr, --lr FLOAT`, its value once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if action.nargs == 0:
            return names
        return f"{names} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


def _new_parser(description: str) -> argparse.ArgumentParser:
    return _Parser(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)


def _add_machine(parser: argparse.ArgumentParser, workers: str) -> None:
    machine = _Group(parser, "machine")
    machine.add("gpu", type=str, default="0", help="index of a CUDA device, or cpu; without CUDA the CPU is used")
    machine.add("precision", choices=PRECISIONS, default="auto", help="auto: bf16 where the hardware has it at speed")
    machine.add("compile", action="store_true", help="compile the network first (torch.compile)")
    machine.add("num_workers", type=whole, default=0, help=workers)


def train_parser() -> argparse.ArgumentParser:
    """The flags of train.py."""
    parser = _new_parser("Train a network; everything it writes is under run/run_<n>/.")
    recipe = "default: {} for two-task networks, {} for one-task ones, the released recipes"
    (one_batch, one_lr), (two_batch, two_lr) = RECIPES[1], RECIPES[2]

    model = _Group(parser, "network")
    model.add("model_name", type=known_model, default="trfe", help=f"one of {', '.join(list_models())}")
    model.add("width", type=natural, default=64, help="channels of the first stage; 64 is the paper's")
    model.add("num_classes", type=int, default=1, help="output maps per task; 1, nodule against the rest")
    model.add("output_stride", type=int, default=None, help="for DeepLabv3+ only; the U-Nets have none")
    model.add(
        "pretrain",
        type=str,
        default="None",
        help="start from another checkpoint's weights as far as they fit: a path, or THYROID for the newest run "
        "of the same network on TG3K",
    )

    data = _Group(parser, "data")
    data.add("dataset", choices=list(TRAINING), default="TATN", help="PHANTOM is synthetic and made on first use")
    data.add("fold", type=int, default=0, choices=range(5), help="fold of TN3K that validates", metavar="0..4")
    data.add("data_root", type=Path, default=Path("data"), help="folder that holds tn3k, tg3k, DDTI, phantom")
    data.add("mask_rule", choices=list(MASK_RULES), default="clean", help="clean: > 127; authors: the release's")
    data.add("input_size", type=natural, default=224, help="images are resized to this side, a multiple of 16")
    data.add("check_data", action="store_true", help="read and check every file of the data, then stop")

    training = _Group(parser, "training")
    training.add("criterion", choices=list(CRITERIA), default="Dice", help="loss")
    training.add("nepochs", type=natural, default=40, help="epochs")
    training.add(
        "batch_size", type=natural, help=f"images, or pairs ({recipe.format(f'{two_batch} pairs', one_batch)})"
    )
    training.add("lr", type=quantity, help=f"learning rate of SGD ({recipe.format(two_lr, one_lr)})")
    training.add("momentum", type=quantity, default=0.9, help="momentum of SGD")
    training.add("weight_decay", type=quantity, default=5e-4, help="weight decay of SGD")
    training.add("update_lr_every", type=natural, default=10, help="epochs between steps of the learning rate")
    training.add(
        "sync_bn", action="store_true", help="of several processes (torchrun): BatchNorm over their joined batch"
    )
    training.add("naver_grad", type=natural, default=1, help="batches whose gradients are averaged for a step")
    training.add(
        "save_memory", action="store_true", help="compute full-size features twice instead of keeping them: same result"
    )
    training.add("use_test", type=int, choices=(0, 1), default=1, metavar="0|1", help="validate after every epoch")
    training.add("seed", type=whole, default=1234, help="seed of weights, order, flips and dropout")

    run = _Group(parser, "run folder")
    run.add("run_root", type=Path, default=Path("run"), help="where run folders are made")
    run.add("run_id", type=int, default=-1, help="number of the run folder; -1: the next free one")
    run.add(
        "load_path",
        type=Path,
        help="go on exactly from a <model>_last.pth, or start a new run with the weights of any other checkpoint",
    )
    run.add(
        "resume_epoch", type=whole, default=0, help="go on after this many epochs of the run -run_id, or of the newest"
    )
    run.add("save_every", type=whole, default=10, help="epochs between kept checkpoints <model>_epoch-<n>.pth; 0: none")
    run.add("log_every", type=natural, default=40, help="batches between training losses in TensorBoard")
    _add_machine(parser, "processes that load data beside the main one")
    return parser


# What a resumed run keeps from its beginning: with another value it would not be the same run.
_KEPT = ("model_name", "width", "dataset", "fold", "mask_rule", "input_size", "criterion", "batch_size", "seed")


def parse_train_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict | None]:
    """(arguments, the checkpoint to start from or None).

    A run that is resumed brings its own arguments, those given now count over them; `resume_epoch` is then the
    number of epochs done and `load_path` the checkpoint. UserError for what cannot work.
    """
    parser = train_parser()
    args = parser.parse_args(argv)
    if args.resume_epoch:
        args.load_path = find_checkpoint(args.run_root, args.run_id, args.model_name, args.resume_epoch)
    if args.load_path is None:
        return _complete(args), None
    checkpoint = read_trainable(args.load_path)
    if "optimizer" not in checkpoint:
        return _complete(args), checkpoint
    return _complete(_resumed(parser, argv, args, checkpoint)), checkpoint


def _resumed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, args: argparse.Namespace, checkpoint: dict
) -> argparse.Namespace:
    """The arguments of a run that goes on."""
    path, done, before = args.load_path, checkpoint["epoch"], checkpoint["args"]
    if args.resume_epoch not in (0, done):
        raise UserError(
            f"-resume_epoch {args.resume_epoch}: {path} holds epoch {done}; only epochs that -save_every "
            f"kept and the last can be gone on from."
        )
    parser.set_defaults(**{name: value for name, value in before.items() if name not in ("load_path", "resume_epoch")})
    args = parser.parse_args(argv)
    args.load_path, args.resume_epoch = path, done
    changed = [name for name in _KEPT if getattr(args, name) != before[name]]
    if changed:
        name = changed[0]
        raise UserError(
            f"-{name} {getattr(args, name)}: the run of {path} has {name} {before[name]}, and going on means "
            f"keeping it. Start a new run, or leave the flag out."
        )
    if done >= args.nepochs:
        raise UserError(
            f"{path} has all its {done} epochs. Give a larger -nepochs to go on, or evaluate it with eval.py."
        )
    return args


def _complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the recipe's defaults and refuse what cannot work."""
    batch_size, lr = RECIPES[len(network(args.model_name).tasks)]
    args.batch_size = args.batch_size or batch_size
    args.lr = lr if args.lr is None else args.lr
    args.data_root, args.run_root = Path(args.data_root), Path(args.run_root)
    if args.num_classes != 1:
        raise UserError(
            f"-num_classes {args.num_classes}: each task has one map, nodule or gland against the rest; use 1."
        )
    if args.output_stride is not None:
        print(f"-output_stride {args.output_stride}: {args.model_name} has no output stride to set, ignored.")
    check_input_size(args.input_size, args.model_name)
    return args


def check_input_size(size: int, model_name: str, only: int | None = None) -> None:
    """UserError unless the network takes images of this side; an exported one takes `only` one."""
    if only not in (None, size):
        raise UserError(f"-input_size {size}: this file was exported for {only}. Leave the flag out, or export again.")
    stride = network(model_name).stride
    if size % stride:
        good = max(stride, round(size / stride) * stride)
        raise UserError(f"-input_size {size}: {model_name} takes multiples of {stride}, for example {good}.")


def _add_tested(parser: argparse.ArgumentParser, checkpoint: str) -> _Group:
    """Which network runs on which test images."""
    what = _Group(parser, "what")
    what.add("load_path", type=Path, required=True, help=checkpoint)
    what.add("model_name", type=known_model, help="only for a released checkpoint, which does not know its model")
    what.add("test_dataset", choices=list(TESTING), help="default: the test images of the data it was trained on")
    what.add("data_root", type=Path, help="folder that holds the data (default: the one it was trained with, or data)")
    what.add("input_size", type=natural, help="default: the one it was trained with, or 224")
    return what


def complete_tested(args: argparse.Namespace, tasks: Sequence[str], checkpoint: dict) -> str:
    """Fill in what the checkpoint knows of the flags of _add_tested; answers the name of the network.

    UserError for a network that has not learned nodules, or does not take images of -input_size.
    """
    if "nodule" not in tasks:
        raise UserError(f"{args.load_path} has learned {tasks[0]}s, but the test images are labelled for nodules.")
    trained, exported_size = checkpoint.get("args", {}), checkpoint.get("input_size")
    name = checkpoint["model"]["name"] if "model" in checkpoint else args.model_name
    args.test_dataset = args.test_dataset or TEST_OF.get(trained.get("dataset"), "TN3K")
    args.data_root = args.data_root or Path(trained.get("data_root", "data"))
    args.input_size = args.input_size or exported_size or trained.get("input_size", 224)
    check_input_size(args.input_size, name, exported_size)
    return name


def eval_parser() -> argparse.ArgumentParser:
    """The flags of eval.py."""
    parser = _new_parser("Evaluate a checkpoint on test images under both protocols.")
    what = _add_tested(parser, "the checkpoint, or a file that export.py wrote (.onnx, .xml)")
    what.add(
        "fold",
        type=int,
        choices=range(5),
        metavar="0..4",
        help="fold of the training, for the summary (default: as the checkpoint says)",
    )
    what.add("save_dir", type=Path, help="default: eval-<dataset> beside the checkpoint")
    what.add("batch_size", type=natural, default=2, help="images that go through the network together")
    _add_machine(parser, "batches under way at once, each in a thread; 0: one per core")
    return parser


def export_parser() -> argparse.ArgumentParser:
    """The flags of export.py."""
    parser = _new_parser("Write a network as ONNX or OpenVINO, if it agrees with PyTorch on test images.")
    what = _add_tested(parser, "the checkpoint (.pth)")
    what.add("limit", type=natural, default=50, help="test images to compare on, at most; spread over all of them")
    result = _Group(parser, "result")
    result.add("format", choices=list(FORMATS), required=True, help="what runs it: onnxruntime, or OpenVINO")
    result.add("out", type=Path, help="file to write (default: beside the checkpoint, with its name)")
    result.add("int8", action="store_true", help="8-bit weights and activations; needs -calibration")
    result.add("calibration", type=Path, help="folder of images, none of them a test image, to measure ranges on")
    return parser
