"""Honeypot as CDALBench runs it, beside the areas it publishes: random .72, margin .70, a greedy oracle .78.

    python benchmarks/honeypot.py [--restarts 50] [--oracle 0] [--first 0] [--prior 0.01]
        [--directory runs/honeypot]

As in the runs published there: points drawn anew every restart, 60 labels bought one by one after the first two, a linear model,
the area as the plain mean of test accuracy over the 61 rounds (not the trapezoid). The prior is that of
`configs/preset/cdalbench.yaml` unless told otherwise. The oracle tries 20 labels a round, so its restarts are counted apart.
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
    parser.add_argument("--prior", type=float)
    parser.add_argument("--directory", type=Path, default=Path("runs/honeypot"))
    options = parser.parse_args()
    preset = library.config("preset", "cdalbench")
    config = {key: preset[key] for key in ("initial", "validation", "budget")}
    config |= {
        "datasets": preset["datasets"][:1],
        "trainer": library.config("trainer", "default") | preset["trainer"], "device": "cpu",
        "executor": {"name": "inline", "lanes": options.restarts},
    }  # fmt: skip
    if options.prior is not None:
        config["trainer"]["prior_precision"] = options.prior
    areas: dict[str, list[float]] = {}
    for restarts, policies in (
        (options.restarts, {"selectors": [], "fixed": ["uniform", "margin"]}),
        (options.oracle, {"selectors": preset["selectors"], "fixed": []}),
    ):
        if restarts:
            seeds = [*range(options.first, options.first + restarts)]
            rounds = compare({**config, **policies, "seeds": seeds}, options.directory).rounds
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
