"""What does AutoAL's search cost, as a share of the task model's training? Fashion-MNIST, small CNN, one run.

    python benchmarks/autoal_cost.py --fashion-mnist FOLDER [--net small_cnn] [--device cpu] [--rounds 4]

CPU seconds of the process, so that neighbours on the machine do not count. What the candidates need to mark the pool is not
the search's.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alenv.runner import Runner, versions


def timed(thing: Any, method: str) -> list[float]:
    """Let a method of `thing` note the CPU seconds of each call in the list that is returned."""
    plain, seconds = getattr(thing, method), []

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds.append(time.process_time() - start)

    setattr(thing, method, measured)
    return seconds


def main() -> None:
    """Run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", required=True)
    parser.add_argument("--net", default="small_cnn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--initial", type=int, default=200)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "autoal_cost.md")
    options = parser.parse_args()
    runner = Runner.of({
        "dataset": {"name": "fashion_mnist", "root": options.fashion_mnist}, "setting": {"name": "standard", "pool": 5000},
        "net": options.net, "selector": "autoal", "device": options.device,
        "budget": {"initial": options.initial, "batch": options.batch, "rounds": options.rounds},
    })  # fmt: skip
    train = timed(runner.problem.trainer, "fit")
    fit_net, rotation = timed(runner.selector, "_fit"), timed(runner.selector, "_rotate")
    run = runner.run()
    where = torch.cuda.get_device_name() if run.model.linear.weight.is_cuda else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        "# What the search costs",
        "",
        f"`python benchmarks/autoal_cost.py --net {options.net} --initial {options.initial} --batch {options.batch} "
        f"--rounds {options.rounds}`; alenv {versions()['alenv']}, torch {torch.__version__}, {where}.",
        "",
        "| labels | task training, CPU s | FitNet, s | rotation, s | search / training |",
        "|---|---|---|---|---|",
    ]
    ratios = []
    for labels, spent, fit, rotate in zip([r.labels for r in run.rounds[1:]], train[1:], fit_net, rotation, strict=False):
        ratios.append((fit + rotate) / spent)
        lines.append(f"| {labels} | {spent:.1f} | {fit:.1f} | {rotate:.1f} | {ratios[-1]:.2f} |")
    lines.append(f"\nMedian: {np.median(ratios):.2f}")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
