"""What asking seven strategies costs against one deterministic pass over the pool plus the stochastic head draws.

    python benchmarks/scoring.py [--net small_cnn] [--size 20000] [--repeats 7]

The goal is a ratio of at most 1.3: the pass over the pool and the draws are shared, so scores cost little beside them. k-means is
clustering, not scoring; its seconds are shown apart.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from alenv import library
from alenv.job import Job
from alenv.pool import Pool
from alenv.round import Round
from alenv.streams import Streams
from alenv.trainer import Trainer

SCORING = ("least_confidence", "margin", "entropy", "bald", "variation_ratio", "mean_std", "uniform")


def timed(run: Callable[[], object], repeats: int) -> float:
    """Return the median of several runs, in seconds."""
    values = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        values.append(time.perf_counter() - start)
    return statistics.median(values)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="small_cnn")
    parser.add_argument("--size", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    streams, trainer = Streams(0), Trainer(device=options.device, epochs=1, min_steps=5)
    draw = streams("inputs")
    inputs = torch.randint(0, 256, (options.size, 1, 28, 28), generator=draw, dtype=torch.uint8).to(trainer.device)
    pool = Pool(options.size, 10, trainer.device)
    pool.reveal(torch.arange(200, device=trainer.device), [i % 10 for i in range(200)])
    net = library.build("net", options.net)
    model = trainer.fit(
        Job(lambda: net((1, 28, 28), 10, 127.0, 73.0), inputs[:200], pool.labels[:200], streams.on(trainer.device))
    )
    strategies = {name: library.build("strategy", name) for name in (*SCORING, "kmeans")}

    def fresh() -> Round:
        return Round.of_model(model, inputs, pool, trainer.outputs, streams)

    def reference() -> None:
        round_ = fresh()
        for block in round_.blocks("mc_probs"):
            block.mc_probs.sum()

    def score_all() -> None:
        round_ = fresh()
        for name in SCORING:
            strategies[name].select(round_, options.batch)

    def cluster() -> None:
        strategies["kmeans"].select(shared, options.batch)

    shared = fresh()
    shared.embeddings  # noqa: B018 - computed beforehand, so that clustering alone is timed
    for warm in (reference, score_all):
        warm()
    base, scored, clustered = (
        timed(reference, options.repeats),
        timed(score_all, options.repeats),
        timed(cluster, options.repeats),
    )
    print(
        f"torch {torch.__version__}, {trainer.device}, {torch.get_num_threads()} threads, {options.net}, "
        f"pool {options.size:,}, 10 classes, T = 10"
    )
    print(f"one pass + head draws   {base:8.3f} s")
    print(f"seven strategies        {scored:8.3f} s   ratio {scored / base:.2f}   goal 1.3")
    print(f"kmeans on top           {clustered:8.3f} s")


if __name__ == "__main__":
    main()
