"""How long a user waits: import, --help, first line of a run, the whole default run.

    python benchmarks/startup.py [--repeats 5]

Prints the median of several fresh processes against the goals: import under 0.3 s without torch, --help under 1 s, first
output within 5 s, `python -m alenv.train selector=autoal` under 60 s on two cores.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

GOALS = {"import alenv": 0.3, "--help": 1.0, "first output": 5.0, "whole run": 60.0}


def seconds(command: list[str], folder: str, first_line: bool = False) -> float:
    """Return how long a fresh process took, or until its first line."""
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        if first_line:
            process.stdout.readline()
            elapsed = time.perf_counter() - start
            process.kill()
            return elapsed
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    train = [sys.executable, "-m", "alenv.train", "selector=autoal", "device=cpu"]
    probe = "import alenv, sys; assert 'torch' not in sys.modules"
    with tempfile.TemporaryDirectory() as folder:
        measured = {
            "python -c pass": [seconds([sys.executable, "-c", "pass"], folder) for _ in range(repeats)],
            "import alenv": [seconds([sys.executable, "-c", probe], folder) for _ in range(repeats)],
            "--help": [seconds([*train[:3], "--help"], folder) for _ in range(repeats)],
            "first output": [seconds([*train, f"seed={i}"], folder, first_line=True) for i in range(repeats)],
            "whole run": [seconds([*train, f"seed={100 + i}"], folder) for i in range(min(3, repeats))],
        }
    for name, values in measured.items():
        goal = f"  goal {GOALS[name]} s" if name in GOALS else ""
        print(f"{name:16} median {statistics.median(values):7.3f} s  (min {min(values):.3f}, max {max(values):.3f}){goal}")


if __name__ == "__main__":
    main()
