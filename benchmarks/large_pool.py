"""Seconds and memory of scoring pools of generated features that lie in a file, and of a whole run on one.

    python benchmarks/large_pool.py                                # entropy, margin, base at 32, 64 and 128 thousand x 2,048
    python benchmarks/large_pool.py --run --sizes 200000           # experiment=imagenet_base on that many
    python benchmarks/large_pool.py --run --sizes 200000 --set budget.initial=5000 budget.batch=5000 budget.rounds=1

Each measurement is a process of its own. "over" is the peak of resident memory less what torch and alenv take; the mapped file's
pages are part of it (the system takes them back when it needs them), "own" is what is left without them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from alenv.datasets.arrays import arrays
from alenv.library import build
from alenv.nets.linear import linear
from alenv.pool import Pool
from alenv.round import Round
from alenv.settings.standard import standard
from alenv.streams import Streams
from alenv.task import Task
from alenv.trainer import Trainer

WIDTH, CLASSES, BLOCK = 2048, 1000, 4000


def write(folder: Path, size: int, test: int = 0) -> None:
    """Write `size` training and `test` test rows around one centre per class, in half precision."""
    draw = np.random.default_rng(0)
    centres = 0.15 * draw.standard_normal((CLASSES, WIDTH), dtype=np.float32)
    for part, count in (("train", size), ("test", test)):
        if count == 0:
            continue
        targets = draw.integers(0, CLASSES, count)
        targets[: min(count, CLASSES)] = np.arange(min(count, CLASSES))
        np.save(folder / f"{part}_targets.npy", targets)
        shape = (count, WIDTH)
        rows = np.lib.format.open_memmap(folder / f"{part}_inputs.npy", mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, count, BLOCK):
            some = targets[start : start + BLOCK]
            rows[start : start + BLOCK] = centres[some] + draw.standard_normal((len(some), WIDTH), dtype=np.float32)
        rows.flush()


def memory(name: str) -> int:
    """Return a line of /proc/self/status in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


def score(folder: Path, strategy: str, batch: int) -> dict[str, float]:
    """Return seconds and megabytes of one purchase."""
    before = memory("VmHWM")
    source = arrays(str(folder))
    task = Task.build(source, standard(source, 100, Streams(0)))  # with a validation split the pool is no run of neighbours
    torch.manual_seed(0)
    model = linear((WIDTH,), CLASSES, task.mean, task.std).eval().requires_grad_(False)
    pool = Pool(len(task), CLASSES)
    pool.reveal(torch.arange(CLASSES), task.targets[:CLASSES].tolist())
    now = Round.of_model(model, task.inputs, pool, Trainer(device="cpu").outputs, Streams(0))
    start = time.perf_counter()
    assert len(build("strategy", strategy).select(now, batch)) == batch
    seconds, over = time.perf_counter() - start, memory("VmHWM") - before
    size = (folder / "train_inputs.npy").stat().st_size
    return {"seconds": round(seconds, 1), "over": over, "file": size // 2**20, "own": over - size // 2**20}


def run(folder: Path, options: list[str]) -> None:
    """Print what `experiment=imagenet_base` takes on the features in `folder`."""
    out = folder / "run"
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable, "-m", "alenv.train", "experiment=imagenet_base", f"dataset.root={folder}", "device=cpu",
            f"hydra.run.dir={out}", *options,
        ],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{time.perf_counter() - start:.0f} s, peak of resident memory {peak:.1f} GB")
    for line in (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        accuracy, seconds = record["metrics"]["accuracy"], {name: round(value) for name, value in record["seconds"].items()}
        print(f"round {record['round']}: {record['labels']} labels, accuracy {accuracy:.3f}, seconds {seconds}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32000,64000,128000")
    parser.add_argument("--strategies", default="entropy,margin,base")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], help="options of alenv-train")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # a child measures what lies there
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(score(Path(options.folder), options.strategies, options.batch)))
        return
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), size, 10_000 if options.run else 0)
            if options.run:
                run(Path(name), options.set)
                continue
            for strategy in options.strategies.split(","):
                command = [sys.executable, __file__, "--folder", name, "--strategies", strategy, "--batch", str(options.batch)]
                found = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{size:>8} {strategy:<8}", json.loads(found.stdout))


if __name__ == "__main__":
    main()
