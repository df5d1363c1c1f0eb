"""What many campaigns at once cost: heads against scikit-learn and against a loop, a step against single environments.

    python benchmarks/vector_env.py [--campaigns 50] [--out FILE]

CPU seconds of one thread, medians of three. "sklearn" is `LogisticRegression` on the same objective (a bias column under the same
penalty), one fit after the other; "alone" is our own solver, one job a call; "loop" trains MLPs of the same weights on the same
batches and masks by autograd, one after the other, and is run before and after what it is compared with, which is timed once.
A step buys by margin: to "choose" is the strategy's part, to "buy" mixing, the oracle, the pool's labels and the job. "product
alone" is the least that scores cost: the features of pool, validation and test times the weights of all heads. Python's collector
is told to pass over what was imported (`gc.freeze()`), as `alenv.train_agent` does.
"""

import argparse
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from alenv.ballot import Ballot
from alenv.campaign import Plan
from alenv.env import ActiveLearningEnv
from alenv.job import Job
from alenv.model import TaskModel
from alenv.nets.linear import linear
from alenv.nets.mlp import mlp
from alenv.problem import Problem, assemble
from alenv.runner import versions
from alenv.streams import Streams
from alenv.task import Examples, Source, number_ids
from alenv.trainer import Trainer
from alenv.vector_env import ActiveLearningVectorEnv

CLASSES = 10
SUBCLUSTERS = 5  # of each class


def cpu(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median CPU seconds of `work`."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def embeddings(n: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return unit-norm embeddings in clusters, and their classes; a tenth of the labels are wrong."""
    centres = torch.randn(CLASSES * SUBCLUSTERS, dim, generator=Streams(0)("centres"))
    draw = Streams(seed)("embeddings")
    cluster = torch.randint(0, len(centres), (n,), generator=draw)
    inputs = centres[cluster] + 2 * torch.randn(n, dim, generator=draw)
    wrong = torch.rand(n, generator=draw) < 0.1
    targets = torch.where(wrong, torch.randint(0, CLASSES, (n,), generator=draw), cluster % CLASSES)
    return inputs / inputs.norm(dim=1, keepdim=True), targets


def heads(count: int, dim: int, labels: int) -> str:
    """Return one line: milliseconds a fit, many at once, alone, and by scikit-learn; accuracies."""
    sets = [embeddings(labels, dim, seed) for seed in range(count)]
    trainer = Trainer(device="cpu")
    jobs = [Job(lambda: linear((dim,), CLASSES), x, y, Streams(seed)) for seed, (x, y) in enumerate(sets)]
    padded = [np.pad(x.numpy(), ((0, 0), (0, 1)), constant_values=1) for x, _ in sets]
    few = max(1, count // 5)

    def sklearn() -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peers = [LogisticRegression(fit_intercept=False, max_iter=1000) for _ in range(few)]
            return [peer.fit(x, y.numpy()) for peer, x, (_, y) in zip(peers, padded, sets, strict=False)]

    x, y = embeddings(5000, dim, 10**6)
    ours = [float((model(x).argmax(1) == y).float().mean()) for model in trainer.fit_many(jobs)[:few]]
    theirs = [fit.score(np.pad(x.numpy(), ((0, 0), (0, 1)), constant_values=1), y.numpy()) for fit in sklearn()]
    together = cpu(lambda: trainer.fit_many(jobs)) / count
    alone = cpu(lambda: [trainer.fit(job) for job in jobs[:few]]) / few
    peer = cpu(sklearn) / few
    return (
        f"| {dim} | {labels} | {1e3 * together:.2f} | {1e3 * alone:.2f} | {1e3 * peer:.2f} | {peer / together:.1f} | "
        f"{alone / together:.1f} | {statistics.mean(ours):.4f} / {statistics.mean(theirs):.4f} |"
    )


class Unstacked(TaskModel):
    """A net that the trainer does not know, and so trains by autograd."""


def unstacked(dim: int) -> TaskModel:
    """Return the MLP of `mlps`, in other clothes."""
    net = mlp((dim,), CLASSES, depth=1)
    found = Unstacked(net.body, net.feature_dim, CLASSES, dropout=net.dropout)
    found.linear = net.linear
    return found


def mlps(count: int, dim: int, labels: int) -> str:
    """Return one line: milliseconds a fit of MLPs with one hidden layer of 256, and accuracies."""
    sets = [embeddings(labels, dim, seed) for seed in range(count)]
    jobs = [Job(lambda: mlp((dim,), CLASSES, depth=1), x, y, Streams(seed)) for seed, (x, y) in enumerate(sets)]
    plain = [replace(job, net=lambda: unstacked(dim)) for job in jobs[: max(1, count // 10)]]
    auto, full = Trainer(device="cpu"), Trainer(device="cpu", precision="float32")
    loop: list[float] = []

    def beside(work: Callable[[], Any], fits: int) -> tuple[float, float]:
        loop.append(cpu(lambda: full.fit_many(plain), 1) / len(plain))
        found = cpu(work, 1) / fits
        loop.append(cpu(lambda: full.fit_many(plain), 1) / len(plain))
        return found, statistics.mean(loop[-2:]) / found

    x, y = embeddings(5000, dim, 10**6)
    accuracies = [
        statistics.mean(float((model(x).argmax(1) == y).float().mean()) for model in models)
        for models in (auto.fit_many(jobs[: len(plain)]), full.fit_many(plain))
    ]
    (together, first), (together_full, second) = (beside(lambda t=t: t.fit_many(jobs), count) for t in (auto, full))
    alone, third = beside(lambda: [auto.fit(job) for job in jobs[: len(plain)]], len(plain))
    return (
        f"| {dim} | {labels} | {1e3 * together:.0f} | {1e3 * together_full:.0f} | {1e3 * alone:.0f} | "
        f"{1e3 * statistics.median(loop):.0f} | {first:.1f} / {second:.1f} / {third:.1f} | "
        f"{accuracies[0]:.4f} / {accuracies[1]:.4f} |"
    )


def large(batch: int = 20) -> Problem:
    """Return a pool of 10,000 x 128 and a test split of 10,000."""
    x, y = embeddings(20_200, 128, 0)
    ids = number_ids(len(x))
    source = Source("clusters", *(Examples(x[part], y[part], ids[part]) for part in (slice(0, 10_200), slice(10_200, None))),
                    tuple(map(str, range(CLASSES))))  # fmt: skip
    return assemble(dataset=source, plan=Plan(100, batch, 5), validation=200, device="cpu")


def product(source: Source, columns: int = 128) -> float:
    """Return the CPU seconds of one campaign's share of the product of all features and the weights of many heads."""
    parts = (source.train,) if source.test is None else (source.train, source.test)
    x = torch.cat([part.inputs[:].float().flatten(1) for part in parts])
    weight = torch.randn(columns, x.shape[1], generator=Streams(0)("weight"))
    return cpu(lambda: weight @ x.T, 9) / (columns // CLASSES)


def step(count: int, problem: Problem | None, rounds: int = 5) -> str:
    """Return one line: milliseconds a campaign-step, together and alone, and where they go."""
    given: dict[str, Any] = {"device": "cpu"} if problem is None else {"problem": problem}
    many = ActiveLearningVectorEnv(count, **({"device": "cpu"} if problem is None else {"problems": problem}))
    action = list(many.envs[0].problem.strategies).index("margin")
    spent = {"fit": 0.0, "scores": 0.0, "buy": 0.0, "choose": 0.0}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = work(*args, **kwargs)
            spent[name] += time.process_time() - start
            return result

        return run

    many.reset(seed=0)
    many._fit = timed("fit", many._fit)  # type: ignore[method-assign]
    many._score = timed("scores", many._score)  # type: ignore[method-assign]
    for env in many.envs:
        env.ask = timed("buy", env.ask)  # type: ignore[method-assign]
    wish, Ballot.wish = Ballot.wish, timed("choose", Ballot.wish)  # type: ignore[method-assign]
    together = cpu(lambda: [many.step([action] * count) for _ in range(rounds)], 1) / rounds / count
    Ballot.wish = wish  # type: ignore[method-assign]
    spent["buy"] -= spent["choose"]
    one = ActiveLearningEnv(**given)
    one.reset(seed=0)
    alone = cpu(lambda: [one.step(action) for _ in range(rounds)], 1) / rounds
    parts = ", ".join(f"{name} {1e3 * seconds / rounds / count:.2f}" for name, seconds in spent.items())
    name = "digits, default" if problem is None else "10,000 x 128, test 10,000"
    rest = 1e3 * (together - sum(spent.values()) / rounds / count)
    least = 1e3 * product(one.problem.source)
    return f"| {name} | {1e3 * together:.2f} | {1e3 * alone:.2f} | {1 / together:.0f} | {parts}, rest {rest:.2f} | {least:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--campaigns", type=int, default=50)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)  # scikit-learn's
    gc.freeze()  # else the collector looks through scikit-learn's objects again and again: up to half a millisecond a step
    found = versions()
    names = ("alenv", "torch", "numpy", "scikit-learn", "gymnasium")
    lines = [
        "# Many campaigns at once", "",
        f"`python benchmarks/vector_env.py`: {', '.join(f'{name} {found[name]}' for name in names)}; one thread.", "",
        f"{given.campaigns} linear heads, C = {CLASSES}, milliseconds a fit:", "",
        "| D | labels | at once | alone | sklearn | sklearn / at once | alone / at once | accuracy, ours / sklearn |",
        "|---|---|---|---|---|---|---|---|",
        *(heads(given.campaigns, dim, labels) for dim in (384, 512) for labels in (100, 500, 2000)), "",
        f"{given.campaigns} MLPs with one hidden layer of 256, default trainer, milliseconds a fit:", "",
        "| D | labels | at once | at once, float32 | alone | loop | loop / at once, float32, alone | accuracy, at once / loop |",
        "|---|---|---|---|---|---|---|---|",
        *(mlps(given.campaigns, dim, labels) for dim in (384, 512) for labels in (100, 500, 2000)), "",
        f"One step of {given.campaigns} campaigns, milliseconds a campaign:", "",
        "| data | together | alone | campaign-steps a second | together, in parts | product alone |", "|---|---|---|---|---|---|",
        step(given.campaigns, None), step(given.campaigns, large()),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
