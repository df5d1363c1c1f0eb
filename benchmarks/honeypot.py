"""Honeypot as CDALBench runs it, beside the areas it publishes: random .72, margin .70, a greedy oracle .78.

    python benchmarks/honeypot.py [--restarts 50] [--oracle 0] [--first 0] [--linear PRIOR]
        [--directory runs/honeypot]

As the preset `cdalbench` has it, which is how the published runs were made; the area is the plain mean of test accuracy over the
61 rounds (not the trapezoid). The oracle tries 20 labels a round, so its restarts are counted apart. `--linear` puts a linear
model fitted to its optimum, with that prior, in place of the net.
"""

import argparse
from pathlib import Path

import numpy as np

from alenv import library
from alenv.compare import compare

PUBLISHED = {"uniform": 0.72, "margin": 0.70, "sample_oracle(tau=20)": 0.78}
BAND = 0.02


def main() -> None:
    """Compute what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--oracle", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="seed of the first restart")
    parser.add_argument("--linear", type=float, metavar="PRIOR")
    parser.add_argument("--directory", type=Path, default=Path("runs/honeypot"))
    options = parser.parse_args()
    preset = library.config("preset", "cdalbench")
    honeypot = preset["datasets"][0]
    if options.linear is not None:
        honeypot |= {"net": "linear", "trainer": {"name": "default", "prior_precision": options.linear}}
    config = {"initial": preset["initial"], "budget": preset["budget"], "datasets": [honeypot], "device": "cpu"}
    areas: dict[str, list[float]] = {}
    for restarts, policies in (
        (options.restarts, {"selectors": [], "fixed": ["uniform", "margin"]}),
        (options.oracle, {"selectors": preset["selectors"], "fixed": []}),
    ):
        if restarts:
            seeds = [*range(options.first, options.first + restarts)]
            executor = {"name": "inline", "lanes": restarts}
            rounds = compare({**config, **policies, "seeds": seeds, "executor": executor}, options.directory).rounds
            for (policy, _), run in rounds.groupby(["policy", "seed"], sort=False):
                areas.setdefault(str(policy), []).append(float(run["value"].mean()))
    for policy, found in areas.items():
        mean, spread, published = float(np.mean(found)), float(np.std(found, ddof=1)), PUBLISHED[policy]
        inside = "within" if abs(mean - published) <= BAND else "outside"
        error = spread / len(found) ** 0.5
        print(
            f"{policy}: {mean:.4f} (standard error {error:.4f}, sd of restarts {spread:.3f}, {len(found)} restarts), "
            f"published {published:.2f}: {inside} +-{BAND}"
        )


if __name__ == "__main__":
    main()
