"""How fast this project is beside the plain way: float32, contiguous, every layer of the release, nothing kept.

python benchmarks/bench.py -data_root data -out benchmarks/results

Each way of doing each piece of work runs in a process of its own, the ways in turn, several times; the table shows
medians. "Plain" is what one would write first, and what the authors' release does: see benchmarks/work.py.
The machine should have nothing else to do.
"""

import argparse
import ctypes.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Way:
    """A way to do a piece of work: arguments of work.py, and what to preload."""

    name: str
    settings: dict[str, str | list[str]] = field(default_factory=dict)
    preload: str | None = None


TCMALLOC = ctypes.util.find_library("tcmalloc_minimal")
PLAIN = Way("plain", {"mode": "plain"})
FP32 = Way("fp32", {"precision": "fp32"})
BF16 = Way("bf16", {"precision": "bf16"})
COMPILED = Way("bf16, -compile", {"precision": "bf16", "compile": "1"})


def without(*changes: str) -> Way:
    """bf16 with some changes left out, to see what they give."""
    return Way(f"bf16 without {', '.join(changes)}", {"precision": "bf16", "without": list(changes)})


WORK: dict[str, list[Way]] = {
    "evaluation": [
        PLAIN,
        Way("plain network, our scores", {"mode": "plain", "scores": "ours"}),
        FP32,
        without("threads"),
        BF16,
        COMPILED,
    ],
    "network": [PLAIN, FP32, without("memory", "relu", "folding"), without("memory", "relu"), BF16, COMPILED],
    "exported": [
        Way("OpenVINO fp32", {"precision": "fp32"}),
        Way("OpenVINO bf16", {"precision": "bf16"}),
        Way("OpenVINO int8", {"precision": "bf16", "int8": "1"}),
    ],
    "training": [
        PLAIN,
        FP32,
        without("memory", "bias", "relu"),
        without("bias", "relu"),
        without("relu"),
        BF16,
        COMPILED,
        Way("bf16, -save_memory", {"precision": "bf16", "save_memory": "1"}),
        *([Way("bf16, tcmalloc", {"precision": "bf16"}, TCMALLOC)] if TCMALLOC else []),
    ],
    "data": [PLAIN, Way("kept in memory")],
    "floors": [Way("this machine")],
}
# What the exported network is compared with.
BASE = {"exported": "network"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-data_root", type=Path, default=Path("data"), help="holds tn3k and tg3k")
    parser.add_argument("-out", type=Path, default=HERE / "results", help="folder for bench.json and bench.md")
    parser.add_argument("-repeat", type=int, default=3, help="times that each way is run")
    parser.add_argument("-images", type=int, default=40, help="test images for the evaluation")
    parser.add_argument("-model_name", default="trfe")
    parser.add_argument("-only", nargs="+", choices=list(WORK), default=list(WORK), help="pieces of work")
    parser.add_argument("-checkpoint", type=Path, help="weights of -model_name; new ones find specks, not nodules")
    args = parser.parse_args()

    results: dict[str, dict[str, list[dict]]] = {}
    for work, way, numbers in runs(args):
        results.setdefault(work, {}).setdefault(way.name, []).append(numbers)
        print(f"{work:<11} {way.name:<26} {json.dumps(numbers)}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "command": sys.argv, "results": results}
    (args.out / "bench.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    table = "\n".join(table_of(results))
    (args.out / "bench.md").write_text(f"{facts['machine']}\n\n{table}\n", encoding="utf-8")
    print(table)


def runs(args: argparse.Namespace) -> Iterator[tuple[str, Way, dict]]:
    """Every way of every piece of work, `repeat` times over, with what it measured."""
    given = {"data_root": args.data_root, "images": args.images, "model_name": args.model_name}
    given |= {"checkpoint": args.checkpoint} if args.checkpoint else {}
    for work in args.only:
        for _ in range(args.repeat):
            for way in WORK[work]:
                settings = {**given, **way.settings}
                flags = [str(word) for name, value in settings.items() for word in (f"-{name}", *_several(value))]
                environment = {**os.environ, **({"LD_PRELOAD": way.preload} if way.preload else {})}
                command = [sys.executable, str(HERE / "work.py"), work, *flags]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
                yield work, way, json.loads(done.stdout.splitlines()[-1])


def _several(value: object) -> list:
    return value if isinstance(value, list) else [value]


def table_of(results: dict[str, dict[str, list[dict]]]) -> Iterator[str]:
    """Markdown: medians of each measured number, and the ratio to the plain way of the first one."""
    for work, ways in results.items():
        names = list(next(iter(ways.values()))[0])
        plain = results.get(BASE.get(work, work), {}).get("plain")
        yield f"\n| {work} | {' | '.join(names)} | {'ratio |' if plain else ''}"
        yield f"|---|{'---:|' * (len(names) + bool(plain))}"
        for way, runs in ways.items():
            medians = {name: statistics.median(run[name] for run in runs) for name in names if name in runs[0]}
            first = statistics.median(run[names[0]] for run in plain) / medians[names[0]] if plain else 0
            values = " | ".join(f"{medians[name]:.4g}" if name in medians else "" for name in names)
            yield f"| {way} | {values} |{f' {first:.2f} |' if plain else ''}"


def machine() -> str:
    """What was measured on, in a line."""
    from importlib.metadata import version

    import torch

    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    cores = f"{os.cpu_count()} cores ({platform.machine()}, {amx})"
    return f"{cores}, Python {platform.python_version()}, torch {version('torch')}"


if __name__ == "__main__":
    main()
