"""The data sets: one table of what each labels, and the calls that train.py and eval.py make.

A new data set is one file that lists its samples and one row here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

from . import ddti, phantom, tatn, tg3k, tn3k
from .samples import Sample

Split = tuple[list[Sample], list[Sample]]


@dataclass(frozen=True)
class TrainingData:
    """labels: the tasks it has masks for; each (data_root, fold) -> (training, validation) samples of one task."""

    labels: dict[str, Callable[[Path, int], Split]]


def _phantom(data_root: Path) -> Path:
    """The folder of the synthetic data, which is made on first use."""
    root = data_root / "phantom"
    if not phantom.is_phantom(root):
        print(f"making the synthetic data in {root} (once)")
        try:
            phantom.make_phantom(root)
        except OSError as error:
            raise UserError(f"cannot make the synthetic data in {root}: {error}. Choose another -data_root.") from error
    return root


def _tn3k(data_root: Path, fold: int) -> Split:
    return tn3k.trainval(data_root / "tn3k", fold)


def _tg3k(data_root: Path, fold: int) -> Split:
    return tg3k.trainval(data_root / "tg3k")


TRAINING: dict[str, TrainingData] = {
    "TN3K": TrainingData({"nodule": _tn3k}),
    "TG3K": TrainingData({"gland": _tg3k}),
    "TATN": TrainingData({"nodule": _tn3k, "gland": _tg3k}),
    "PHANTOM": TrainingData(
        {
            "nodule": lambda root, fold: tn3k.trainval(_phantom(root) / "tn3k", fold, "PHANTOM"),
            "gland": lambda root, fold: tg3k.trainval(_phantom(root) / "tg3k", "PHANTOM"),
        }
    ),
}

TESTING: dict[str, Callable[[Path], list[Sample]]] = {
    "TN3K": lambda root: tn3k.evaluation(root / "tn3k"),
    "DDTI": lambda root: ddti.evaluation(root / "DDTI"),
    "PHANTOM": lambda root: tn3k.evaluation(_phantom(root) / "tn3k", "PHANTOM"),
}

# The test images that belong to each training set (TG3K has none).
TEST_OF = {"TN3K": "TN3K", "TATN": "TN3K", "PHANTOM": "PHANTOM"}


def tasks_to_train(dataset: str, model_name: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """What a network with these tasks learns from `dataset`: its tasks, or for one with a single task the data's.

    UserError, naming data that would do, where the dataset does not label what the network needs.
    """
    labels = TRAINING[dataset].labels
    if set(tasks) <= set(labels):
        return tuple(tasks)
    if len(tasks) == 1:
        return tuple(labels)
    fitting = [name for name, data in TRAINING.items() if set(tasks) <= set(data.labels)]
    raise UserError(
        f"{model_name} trains on {' and '.join(task + 's' for task in tasks)}; {dataset} labels "
        f"{' and '.join(labels)}s only. Use -dataset {' or '.join(fitting)}."
    )


def training_samples(
    dataset: str, tasks: Sequence[str], data_root: Path, fold: int
) -> tuple[list[tuple[Sample, ...]], list[Sample]]:
    """(training items, validation samples). An item is one sample, or with two tasks a (nodule, gland) pair.

    Validation is on nodules wherever the network learns them. UserError for data that is not as expected.
    """
    splits = {task: TRAINING[dataset].labels[task](data_root, fold) for task in tasks}
    train, val = splits["nodule" if "nodule" in splits else "gland"]
    if len(splits) == 1:
        return [(sample,) for sample in train], val
    return tatn.pair(train, splits["gland"][0]), val
