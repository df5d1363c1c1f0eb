"""What selecting costs: CPU seconds of one thread and peak memory, side by side with a plain reference and with peers.

    python benchmarks/selection.py [--only badge coreset ...] [--size 50000] [--write FILE]
    python benchmarks/selection.py --only growth space      # exponents in N, and an address-space limit, of every strategy

Each case runs in a fresh process, its contenders one after the other on the same data; the ratio is a contender's seconds over
alenv's. Peers come with `pip install 'alenv[bench]'`; those that are absent are left out. "~": two short batches were run and
the cost of a step scaled to the whole batch. Memory is the peak resident set less that before the call.

To add a case, decorate a function that takes the options and yields `Contender`s, alenv's first.
"""

import argparse
import ctypes
import functools
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from alenv import coverage, geometry, library, ops
from alenv.device import has_native_bfloat16
from alenv.gradients import pseudo_gradients
from alenv.nets.linear import linear
from alenv.pool import OUTSIDE, Pool
from alenv.round import Purchase, Round
from alenv.strategy import Strategy
from alenv.streams import Streams
from alenv.trainer import Trainer
from alenv.version import VERSION

DIM = 512
GROWTH = (10_000, 20_000, 40_000, 80_000)
SPACE = 2**30  # bytes over the pool that a selection may take
SECONDS = 120  # CPU time after which a sweep gives a strategy up
LEAST = (5e-3, 16.0)  # seconds and MB below which growth is noise
QUADRATIC = ("probcover", "max_herding", "uncertainty_herding", "dcom", "cluster_margin")  # by definition
SMALLER = {name: {"dim": 64} for name in QUADRATIC} | {"bait": {"dim": 16, "classes": 4, "batch": 10}}  # for their growth
LINEAR_BOUND, QUADRATIC_BOUND = 1.15, 2.05  # exponents in N
GIVEN = {"probs", "logits", "embeddings", "labeled_embeddings", "discarded_embeddings", "labels", "head", "mc_probs"}


class Contender(NamedTuple):
    """What is timed; `verdict` says in words what came of it, beside alenv's result."""

    name: str
    run: Callable[..., Any]
    verdict: Callable[[Any, Any], str] = lambda mine, first: ""
    steps: tuple[int, int] | None = None  # run(b) for these two batches, and scale


CASES: dict[str, Callable[[argparse.Namespace], Iterator[Contender]]] = {}


def case(*names: str) -> Callable[[Callable[..., Iterator[Contender]]], Callable[..., Iterator[Contender]]]:
    """Register a case under names; its parts after a colon are passed on."""

    def register(function: Callable[..., Iterator[Contender]]) -> Callable[..., Iterator[Contender]]:
        for name in names:
            parts = name.split(":")[1:]
            CASES[name] = lambda options, parts=parts: function(options, *parts)
        return function

    return register


# Data


def clustered(size: int, classes: int = 10, seed: int = 0, dim: int = DIM) -> torch.Tensor:
    """Unit rows in five clusters a class, of widths that follow a power law."""
    draw = Streams(seed)("data")
    centres = normalize(torch.randn(5 * classes, dim, generator=draw))
    width = 0.5 * torch.rand(size, 1, generator=draw).pow(-0.35).clamp(max=6)
    noise = torch.randn(size, dim, generator=draw).mul_(width / math.sqrt(dim))
    return normalize(noise.add_(centres[torch.randint(len(centres), (size,), generator=draw)]))


def isotropic(size: int) -> torch.Tensor:
    """Unit rows of no structure."""
    return normalize(torch.randn(size, DIM, generator=Streams(0)("data")))


def probabilities(x: torch.Tensor, classes: int, draws: int | None = None) -> torch.Tensor:
    """Softmax outputs of a head, or of as many perturbed heads."""
    draw = Streams(0)("head")
    weight = 4 * torch.randn(classes, x.shape[1], generator=draw)
    if draws is None:
        return (x @ weight.T).softmax(1)
    return torch.stack([(x @ (weight + torch.randn(weight.shape, generator=draw)).T).softmax(1) for _ in range(draws)])


def everything(size: int, classes: int, labeled: int = 1000, dim: int = DIM) -> Round:
    """A round with all that arrays can give."""
    x, known = clustered(size, dim=dim), clustered(labeled, seed=1, dim=dim)
    weight = 4 * torch.randn(classes, dim, generator=Streams(0)("head"))
    return Round.from_arrays(
        logits=x @ weight.T, embeddings=x, head=(weight, torch.zeros(classes)), labels=torch.arange(labeled) % classes,
        labeled_embeddings=known, discarded_embeddings=known[:0], mc_probs=probabilities(x, classes, draws=5),
    )  # fmt: skip


def modelled(strategy: Strategy, size: int, classes: int, labeled: int = 1000, dim: int = DIM) -> Round:
    """A round of a linear model, with the heads and features that a strategy needs, and a purchase, a fifth of it discarded."""
    trainer, streams, last = Trainer(device="cpu"), Streams(0), max(10, labeled // 5)
    x = clustered(size + labeled + last, dim=dim)
    with streams.scoped("model"):
        model = linear((dim,), classes)
        for head in strategy.heads():
            model.aux[head.name] = head.build([x.shape[1:]], classes, labeled)
    model.linear.weight.data = 4 * torch.randn(classes, dim, generator=streams("head"))
    pool = Pool(len(x), classes)
    pool.reveal(torch.arange(labeled), [i % classes for i in range(labeled)])
    bought = torch.arange(labeled, labeled + last)
    pool.reveal(bought, [i % classes if i % 5 else OUTSIDE for i in range(last)])
    model.eval().requires_grad_(False)
    features = {need.partition(":")[2]: x for need in strategy.needs if need.startswith("features:")}
    purchase = Purchase(bought, pool.labels[bought], trainer.outputs(model, x[bought]))
    return Round.of_model(model, x, pool, trainer.outputs, streams, last=purchase, features=features)


# Cases


@case("badge:10", "badge:100")
def badge(options: argparse.Namespace, classes: str) -> Iterator[Contender]:
    x = clustered(options.size)
    probs = probabilities(x, int(classes))
    round_ = Round.from_arrays(probs=probs, embeddings=x)
    gradients = pseudo_gradients(round_)

    def potential(picks: Any) -> float:
        return float(gradients.to_nearest(gradients.at(torch.as_tensor(np.asarray(picks)))).sum())

    def plain(batch: int) -> list[int]:
        a, h, norms = gradients.a, gradients.h, gradients.norms
        generator, picks, distance = Streams(0)("plain"), [int(norms.argmax())], torch.full_like(norms, torch.inf)
        while len(picks) < batch:
            i = picks[-1]
            new = norms + norms[i] - 2 * torch.mv(a, a[i]) * (torch.mv(h, h[i]) + 1)
            distance = torch.minimum(distance, new.clamp_(min=0))
            distance[i] = 0
            picks.append(int(ops.draw(distance, generator)))
        return picks

    def verdict(mine: Any, first: Any) -> str:
        return f"potential {potential(mine):.0f}" + ("" if mine is first else f" (alenv {potential(first[: len(mine)]):.0f})")

    strategy = library.build("strategy", "badge")
    yield Contender("alenv", lambda: strategy.select(round_, options.batch), verdict)
    yield Contender("plain factored loop", lambda: plain(options.batch), verdict)
    if importlib.util.find_spec("skactiveml") and options.size * int(classes) * DIM < 2**29:
        from skactiveml.base import SkactivemlClassifier
        from skactiveml.pool import Badge

        class Fixed(SkactivemlClassifier):  # type: ignore[misc]
            def fit(self, *_: Any) -> "Fixed":
                return self

            def predict_proba(self, _: Any) -> Any:
                return probs.numpy()

        labels, peer, fixed = np.full(len(x), np.nan), Badge(random_state=0), Fixed(classes=list(range(int(classes))))
        yield Contender(
            "scikit-activeml", lambda b: peer.query(x.numpy(), labels, fixed, fit_clf=False, batch_size=b), verdict, steps=(4, 24)
        )


@case("coreset:clustered", "coreset:isotropic")
def coreset(options: argparse.Namespace, kind: str) -> Iterator[Contender]:
    everyone = {"clustered": clustered, "isotropic": isotropic}[kind](options.size + options.batch)
    covered, x = everyone[: options.batch], everyone[options.batch :].contiguous()
    round_ = Round.from_arrays(embeddings=x, labeled_embeddings=covered, num_classes=2)

    def plain() -> torch.Tensor:
        norms = x.square().sum(1)
        distance = torch.cat([(norms[s : s + 4096, None] + covered.square().sum(1) - 2 * x[s : s + 4096] @ covered.T).amin(1)
                              for s in range(0, len(x), 4096)])  # fmt: skip
        picks = torch.zeros(options.batch, dtype=torch.int64)
        for i in range(options.batch):
            picks[i] = pick = int(distance.argmax())
            distance = torch.minimum(distance, norms - 2 * torch.mv(x, x[pick]) + norms[pick])
            distance[pick] = -1
        return picks

    def verdict(mine: Any, first: Any) -> str:
        mine = torch.as_tensor(np.asarray(mine))
        shared = len(set(mine.tolist()) & set(first[: len(mine)].tolist()))
        return f"{shared} of {len(mine)} picks shared, {int((mine == first[: len(mine)]).sum())} at the same place"

    strategy = library.build("strategy", "coreset")
    yield Contender("alenv", lambda: strategy.select(round_, options.batch))
    yield Contender("plain loop", plain, verdict)
    yield Contender("N x L distances alone", lambda: geometry.nearest(x, covered))
    if importlib.util.find_spec("skactiveml"):
        from skactiveml.pool import CoreSet

        labels = np.r_[np.full(len(x), np.nan), np.zeros(len(covered))]
        inputs, peer = torch.cat([x, covered]).numpy(), CoreSet(random_state=0)
        yield Contender("scikit-activeml", lambda b: peer.query(inputs, labels, batch_size=b), verdict, steps=(10, 40))


@case("kmeans")
def kmeans(options: argparse.Namespace) -> Iterator[Contender]:
    x, k, steps = clustered(options.size), options.batch, 25

    def verdict(centres: Any, _: Any) -> str:
        return f"inertia {float(geometry.nearest(x, torch.as_tensor(centres))[0].sum()):.0f}"

    yield Contender("alenv, 25 steps", lambda: geometry.kmeans(x, k, Streams(0)("kmeans"), steps, tolerance=-1.0)[0], verdict)
    yield Contender("alenv, to its tolerance", lambda: geometry.kmeans(x, k, Streams(0)("kmeans"))[0], verdict)
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)

        def peer() -> Any:
            model = faiss.Kmeans(DIM, k, niter=steps, seed=0, max_points_per_centroid=10**9)
            model.train(x.numpy())
            return model.centroids

        yield Contender("faiss, 25 steps, all rows", peer, verdict)
    if options.size <= 20_000:
        from sklearn.cluster import KMeans

        yield Contender("scikit-learn", lambda: KMeans(k, n_init=1, random_state=0).fit(x.numpy()).cluster_centers_, verdict)


@case("bald:10", "bald:100")
def bald(options: argparse.Namespace, classes: str) -> Iterator[Contender]:
    draws = probabilities(clustered(options.size), int(classes), draws=10)
    round_ = Round.from_arrays(mc_probs=draws)

    def plain() -> torch.Tensor:
        mean = draws.mean(0)
        total = -(mean * (mean + 1e-12).log()).sum(1)
        return total + (draws * (draws + 1e-12).log()).sum(2).mean(0)

    def verdict(mine: Any, first: Any) -> str:
        return f"largest difference {float((mine - first).abs().max()):.0e}"

    strategy = library.build("strategy", "bald")
    yield Contender("alenv", lambda: strategy.scores(round_))
    yield Contender("plain three lines", plain, verdict)


@case(*(f"scores:{name}:{classes}" for name in ("margin", "entropy", "least_confidence") for classes in (10, 100, 1000)))
def scores(options: argparse.Namespace, name: str, classes: str) -> Iterator[Contender]:
    probs = probabilities(clustered(options.size), int(classes))
    array, strategy = probs.numpy(), library.build("strategy", name)
    rounds = iter([Round.from_arrays(probs=probs) for _ in range(options.repeats)])  # a round keeps what it has found
    yield Contender("alenv", lambda: strategy.scores(next(rounds)))
    for form, plain in NUMPY[name].items():
        yield Contender(
            f"numpy, {form}", lambda plain=plain: plain(array),
            lambda mine, first: f"largest difference {np.abs(mine - first.numpy()).max():.0e}",
        )  # fmt: skip


def partition(array: Any) -> Any:
    part = np.partition(array, -2, axis=1)
    return part[:, -2] - part[:, -1]


def masked(array: Any) -> Any:
    rest, rows, which = array.copy(), np.arange(len(array)), array.argmax(1)
    rest[rows, which] = -1
    return rest.max(1) - array[rows, which]


def columns(array: Any) -> Any:
    one, other, *rest = np.ascontiguousarray(array.T)
    first, second = np.maximum(one, other), np.minimum(one, other)
    for column in rest:
        np.maximum(second, np.minimum(first, column), out=second)
        np.maximum(first, column, out=first)
    return second - first


NUMPY: dict[str, dict[str, Callable[[Any], Any]]] = {
    "margin": {"partition": partition, "max, mask, max": masked, "by columns": columns},
    "entropy": {
        "sum": lambda array: -(array * np.log(array + 1e-12)).sum(1),
        "einsum": lambda array: -np.einsum("ij,ij->i", array, np.log(array + 1e-12)),
    },
    "least_confidence": {
        "max": lambda array: 1 - array.max(1),
        "by columns": lambda array: 1 - np.ascontiguousarray(array.T).max(0),
    },
}


@case("batchbald")
def batchbald(options: argparse.Namespace) -> Iterator[Contender]:
    size, batch = min(options.size, 10_000), 5
    draws = probabilities(clustered(size), 10, draws=10)
    round_ = Round.from_arrays(mc_probs=draws)
    strategy = library.build("strategy", "batchbald", configurations=1000)
    yield Contender("alenv", lambda: strategy.select(round_, batch))
    if importlib.util.find_spec("skactiveml"):
        from skactiveml.pool._bald import batch_bald

        probs = draws.numpy().astype(np.float64)

        def verdict(gains: Any, first: Any) -> str:  # the first four picks know of all 10^3 configurations, the fifth of a sample
            return f"{int((np.nanargmax(gains, 1) == first.numpy())[:4].sum())} of the first 4 picks at the same place"

        yield Contender("scikit-activeml", lambda: batch_bald(probs, batch, n_MC_samples=1000, random_state=0), verdict)


@case("bait")
def bait(options: argparse.Namespace) -> Iterator[Contender]:
    """Small enough for the exact form: 3,000 candidates, 20 classes, 64 dimensions, b = 100 with 200 labelled ones."""
    round_ = everything(3000, 20, labeled=200, dim=64)
    weight, _ = round_.head

    def information(h: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.pad(h, (0, 1), value=1.0).double()
        parts = [torch.einsum("i,ik,il->kl", p[:, c].double(), h, h) for c in range(20)]
        mixed = (p.double().unsqueeze(2) * h.unsqueeze(1)).flatten(1)
        return torch.block_diag(*parts) - mixed.T @ mixed

    known = round_.labeled_embeddings
    goal = information(round_.embeddings, round_.probs) / 3000
    start = information(known, (known @ weight.T).softmax(1)) + torch.eye(len(goal))

    def trace(picks: Any, _: Any) -> str:
        bought = start + information(round_.embeddings[picks], round_.probs[picks])
        return f"trace {float(torch.linalg.solve(bought, goal).trace()):.4f}"

    for name, changed in (("exact", {}), ("projected", {"max_parameters": 1}),
                          ("projected, 400 considered", {"max_parameters": 1, "candidates": 400})):  # fmt: skip
        strategy = library.build("strategy", "bait", **changed)
        yield Contender(f"alenv, {name}", lambda strategy=strategy: strategy.select(round_, 100), trace)
    for name in ("margin", "badge", "uniform"):
        strategy = library.build("strategy", name)
        yield Contender(name, lambda strategy=strategy: strategy.select(round_, 100), trace)


@case("typiclust")
def typiclust(options: argparse.Namespace) -> Iterator[Contender]:
    """b = 100 with 100 labelled ones, beside the rule as it was published: sklearn's clusters, neighbours anew at each visit."""
    x, known, batch = clustered(options.size), clustered(100, seed=1), 100
    round_, strategy = (
        Round.from_arrays(embeddings=x, labeled_embeddings=known, num_classes=10),
        library.build("strategy", "typiclust"),
    )

    def published() -> list[int]:
        model = MiniBatchKMeans(min(len(known) + batch, 500), batch_size=5000, random_state=0)
        cluster = model.fit_predict(torch.cat([x, known]).numpy())
        here, counts, sizes = (
            cluster[: len(x)].copy(),
            np.bincount(cluster[len(x) :], minlength=500),
            np.bincount(cluster, minlength=500),
        )
        order = sorted(np.flatnonzero(sizes > 5), key=lambda c: (counts[c], -sizes[c]))
        picks: list[int] = []
        while len(picks) < batch:
            rows = np.flatnonzero(here == order[len(picks) % len(order)])
            mine = x[rows]
            nearest = torch.cdist(mine, mine).topk(min(20, len(rows) // 2) + 1, largest=False).values[:, 1:]
            picks.append(int(rows[(1 / (nearest.mean(1) + 1e-5)).argmax()]))
            here[picks[-1]] = -1
        return picks

    yield Contender("alenv", lambda: strategy.select(round_, batch))
    if importlib.util.find_spec("sklearn"):
        from sklearn.cluster import MiniBatchKMeans

        yield Contender("as published", published)


@case("probcover")
def probcover(options: argparse.Namespace) -> Iterator[Contender]:
    """b = 100 with 100 labelled ones at the radius alenv finds, beside the rule as it was published: a graph of all pairs."""
    x, known, batch = clustered(options.size), clustered(100, seed=1), 100
    round_ = Round.from_arrays(embeddings=x, labeled_embeddings=known, num_classes=10)
    everyone, streams = normalize(torch.cat([x, known])), Streams(0)
    cluster = geometry.kmeans(everyone, 10, streams("kmeans"))[1]
    delta = coverage.pure_radius(everyone, cluster, 0.95, streams("radius"), 2000)
    strategy, edges = library.build("strategy", "probcover", delta=delta), 0

    def published() -> list[int]:
        nonlocal edges
        near = [torch.nonzero(torch.cdist(part, everyone) < delta) for part in everyone.split(500)]
        start = torch.cat([pairs[:, 0] + 500 * i for i, pairs in enumerate(near)]).numpy()
        end = torch.cat([pairs[:, 1] for pairs in near]).numpy()
        edges, picks = len(start), list[int]()
        covered = np.isin(np.arange(len(everyone)), end[start >= len(x)])
        for _ in range(batch):
            kept = ~covered[end]
            start, end = start[kept], end[kept]
            picks.append(int(np.bincount(start, minlength=len(everyone))[: len(x)].argmax()))
            covered[end[start == picks[-1]]] = True
        return picks

    def verdict(mine: Any, first: Any) -> str:
        found = [torch.as_tensor(picks[: batch // 2]) for picks in (mine, first)]  # equal gains fall by lot: other rows, as many
        covered = [torch.cat([everyone[picks], everyone[len(x) :]]) for picks in found]
        mine, first = (int((geometry.nearest(everyone, part)[0] < delta**2).sum()) for part in covered)
        return f"{batch // 2} picks cover {mine} (alenv {first}); {edges / len(everyone):.0f} neighbours a row"

    yield Contender("alenv", lambda: strategy.select(round_, batch))
    yield Contender("as published", published, verdict)


@case("entropy_cb")
def entropy_cb(options: argparse.Namespace) -> Iterator[Contender]:
    """45,000 candidates, 100 classes of unequal labels, the paper's weight for them."""
    size, known = options.size * 9 // 10, Streams(0)("labels")
    labels = torch.multinomial(0.96 ** torch.arange(100.0), options.size - size, replacement=True, generator=known)
    round_ = Round.from_arrays(probs=probabilities(clustered(size), 100), labels=labels)
    strategy = library.build("strategy", "entropy_cb", weight=2.0)

    def verdict(found: Any, _: Any) -> str:
        return f"certified gap {100 * (found.objective - found.bound) / abs(found.objective):.4f} %"

    yield Contender("alenv", lambda: strategy.solve(round_, options.batch), verdict)


@case("coremse")
def coremse(options: argparse.Namespace) -> Iterator[Contender]:
    """The scores alone: expected changes of 500 predictions, 100 classes, 5 draws; beside all pairs written out."""
    draws = probabilities(clustered(options.size), 100, draws=5)
    round_ = Round.from_arrays(mc_probs=draws)
    strategy = library.build("strategy", "coremse", estimation_share=500 / options.size)
    yield Contender("alenv", lambda: strategy.scores(round_))


@case(*(f"imagenet:{name}" for name in ("badge", "coreset", "base", "margin")))
def imagenet(options: argparse.Namespace, name: str) -> Iterator[Contender]:
    """A tenth of ImageNet: 128,000 x 2,048 features, 1,000 classes; what counts is memory over these arrays."""
    draw, size, width, classes = Streams(0)("imagenet"), 128_000, 2048, 1000
    x, weight = torch.empty(size, width), torch.randn(classes, width, generator=draw)
    logits = torch.empty(size, classes)
    for block in range(0, size, 8000):
        rows = slice(block, block + 8000)
        centres = weight[torch.randint(classes, (8000,), generator=draw)]
        x[rows] = normalize(centres + 1.5 * torch.randn(8000, width, generator=draw))
        logits[rows] = 12 * x[rows] @ normalize(weight).T
    known, held = x[:1000].clone(), size * (width + classes) * 4 / 2**20
    if name == "base":  # reads logits, not probabilities
        round_ = Round.from_arrays(embeddings=x, logits=logits, head=(weight, torch.zeros(classes)), labeled_embeddings=known)
    else:
        for rows in logits.split(8000):
            rows.copy_(rows.softmax(1))
        round_ = Round.from_arrays(embeddings=x, probs=logits, labeled_embeddings=known)
    strategy = library.build("strategy", name)
    yield Contender("alenv", lambda: strategy.select(round_, options.batch), lambda *_: f"over arrays of {held:.0f} MB")


# Every strategy: growth, and an address-space limit


def sweep(options: argparse.Namespace) -> Iterator[tuple[str, list[float] | str]]:
    """Yield the CPU seconds and peak MB of one selection of each strategy, or what went wrong.

    All select from the same round, each in a fork of its own: nobody pays for the data or the imports, nobody's arrays stay. What
    takes less than a second is repeated, and the least counts. With `options.limit`, a fork has that many bytes of address space
    to spare.
    """
    plain = everything(options.size, options.classes, dim=options.dim)
    small = everything(200, options.classes, labeled=2 * options.classes, dim=options.dim)
    for name in ("probs", "logits", "mc_probs"):
        getattr(plain, name)  # not a strategy's cost
    for name in options.strategies or library.names("strategy"):
        strategy, found = library.build("strategy", name), list[list[float]]()
        round_, tiny = plain, small
        if not strategy.needs <= GIVEN or strategy.heads():
            round_ = modelled(strategy, options.size, options.classes, dim=options.dim)
            tiny = modelled(strategy, 200, options.classes, 2 * options.classes, options.dim)
            named = [need.partition(":")[2] for need in strategy.needs if need.startswith("features:")]
            _ = round_.probs, round_.aux, [round_.features(name).candidates for name in named]
        while len(found) < (options.repeats if found and found[0][0] < 1 else 1):
            said = forked(functools.partial(selected, strategy, round_, tiny, options))
            if not isinstance(said, list):
                break
            found.append(said)
        yield name, [min(runs) for runs in zip(*found, strict=True)] if found else said


def forked(run: Callable[[], list[float] | str]) -> list[float] | str:
    """Return what `run` returns in a fork."""
    receive, send = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(receive)
        os.write(send, json.dumps(run()).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said) if said else f"more than {SECONDS} s"


def selected(strategy: Strategy, round_: Round, tiny: Round, options: argparse.Namespace) -> list[float] | str:
    """Return CPU seconds and peak MB of one selection, or the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy.select(tiny, 10)  # first calls are not its cost
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + SECONDS,) * 2)
            if options.limit:
                resource.setrlimit(resource.RLIMIT_AS, (1024 * _status("VmSize") + options.limit,) * 2)
            return list(peak(lambda: strategy.select(round_, options.batch), time.thread_time)[:2])  # a limit blunts the other
    except (MemoryError, RuntimeError) as error:
        return str(error).splitlines()[0][:90] or type(error).__name__


def child(*arguments: object) -> subprocess.CompletedProcess[str]:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | one_thread)


def swept(names: list[str], **changed: int) -> dict[str, list[float] | str]:
    """Return what `sweep` finds in a process of its own."""
    run = child("--sweep", *(part for name, value in changed.items() for part in (f"--{name}", value)), "--strategies", *names)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return dict(map(json.loads, run.stdout.splitlines()))


def growth(options: argparse.Namespace) -> Iterator[str]:
    """Fit seconds ~ N^exponent, and the same of memory: what is too little to measure counts as `LEAST`."""
    everyone, usual = options.strategies or library.names("strategy"), {"dim": DIM, "classes": 10, "batch": 100}
    groups: dict[str, list[str]] = {}
    for name in everyone:
        groups.setdefault(json.dumps(usual | SMALLER.get(name, {})), []).append(name)
    for setting, names in groups.items():
        dim, classes, batch = (changed := json.loads(setting)).values()
        found = [swept(names, size=size, repeats=options.repeats, **changed) for size in GROWTH]
        for name in names:
            runs = [run[name] for run in found]
            what = f"| growth:{name} | alenv, D = {dim}, C = {classes}, b = {batch} |"
            if any(isinstance(run, str) for run in runs):
                yield f"{what} | | | failed: {next(run for run in runs if isinstance(run, str))} |"
                continue
            time_, memory = np.polyfit(np.log(GROWTH), np.log(np.maximum(runs, LEAST)), 1)[0]
            bound = QUADRATIC_BOUND if name in QUADRATIC else LINEAR_BOUND
            seconds = ", ".join(f"{run[0]:.3g}" for run in runs)
            verdict = f"exponents {time_:.2f} (goal {bound}), {memory:.2f} (goal {LINEAR_BOUND})"
            yield f"{what} {seconds} | | {runs[-1][1]:.0f} | {verdict} |"


def space(options: argparse.Namespace) -> Iterator[str]:
    """Select from a large pool with `SPACE` bytes of address space over it."""
    names = options.strategies or library.names("strategy")
    for name, found in swept(names, size=options.size, batch=options.batch, classes=100, repeats=1, limit=SPACE).items():
        if isinstance(found, str):
            yield f"| space:{name} | alenv, 100 classes | | | | failed: {found} |"
        else:
            verdict = f"within {SPACE / 2**30:g} GiB over the pool"
            yield f"| space:{name} | alenv, 100 classes | {found[0]:.3f} | | {found[1]:.0f} | {verdict} |"


EVERY = {"growth": growth, "space": space}


# Measuring


def peak(run: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> tuple[float, float, Any]:
    """Return CPU seconds, MB of peak resident set over that before, and the result.

    Pages of libraries and files that the system took back before and that came again in the call are not its own.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before may not serve now
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, files, start = _status("VmRSS"), _status("RssFile"), clock()
    result = run()
    seconds, loaded = clock() - start, max(0, _status("RssFile") - files)
    return seconds, max(0, _status("VmHWM") - before - loaded) / 1024, result


def _status(field: str) -> int:
    """Return a number of kB that the system keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(contender: Contender, options: argparse.Namespace) -> tuple[float, float, Any]:
    if contender.steps is None:
        runs = [peak(contender.run) for _ in range(options.repeats)]
        return statistics.median(run[0] for run in runs), runs[0][1], runs[-1][2]
    few, more = contender.steps
    contender.run(few)
    first, second = peak(lambda: contender.run(few)), peak(lambda: contender.run(more))
    return second[0] + (second[0] - first[0]) / (more - few) * (options.batch - more), second[1], second[2]


def compare(name: str, options: argparse.Namespace) -> Iterator[str]:
    base, first = None, None
    for contender in CASES[name](options):
        seconds, memory, result = measure(contender, options)
        ratio = "" if base is None else f"{seconds / base:.1f}"
        base, first = (seconds, result) if base is None else (base, first)
        shown = f"{seconds:.{4 if seconds < 0.1 else 3}f}{'~' if contender.steps else ''}"
        yield f"| {name} | {contender.name} | {shown} | {ratio} | {memory:.0f} | {contender.verdict(result, first)} |"


def heading(options: argparse.Namespace) -> str:
    peers = [f"{name} {version(name)}" for name in ("scikit-activeml", "faiss-cpu", "scikit-learn", "numpy") if version(name)]
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    native = "native bfloat16" if has_native_bfloat16(torch.device("cpu")) else "no native bfloat16"
    machine = f"Python {platform.python_version()}, {model}, one thread, {native}"
    return (
        f"# What selecting costs\n\n`python benchmarks/selection.py {' '.join(sys.argv[1:])}`; alenv {VERSION}, "
        f"torch {torch.__version__}, {', '.join(peers)}; {machine}.\n\n"
        f"N = {options.size:,}, D = {DIM}, b = {options.batch:,} (and as many labelled ones for core-set). CPU seconds, median "
        f"of {options.repeats}; ratio to alenv's; MB of peak resident memory over before. ~: scaled from two short batches.\n\n"
        "| case | contender | seconds | ratio | MB | what came of it |\n|---|---|---|---|---|---|"
    )


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", help=f"cases, or what comes before their colon: {', '.join(CASES)}, growth, space"
    )
    parser.add_argument("--size", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", help="of growth and space (default: all)")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    for hidden, kind in (("--case", str), ("--classes", int), ("--limit", int), ("--dim", int)):
        parser.add_argument(hidden, type=kind, default=DIM if hidden == "--dim" else None, help=argparse.SUPPRESS)
    parser.add_argument("--sweep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sweep:
        for found in sweep(options):
            print(json.dumps(found), flush=True)
        return
    if options.case:
        for row in compare(options.case, options):
            print(row, flush=True)
        return
    lines = [heading(options)]
    print(lines[0], flush=True)

    def note(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if options.write:
            options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")

    chosen = [name for name in CASES if options.only is None or any(name == o or name.startswith(o + ":") for o in options.only)]
    for name in chosen:
        run = child("--case", name, "--size", options.size, "--batch", options.batch, "--repeats", options.repeats)
        failed = (
            [f"| {name} | | | | | failed: {(run.stderr.strip() or 'killed').splitlines()[-1][:90]} |"] if run.returncode else []
        )
        for line in run.stdout.splitlines() + failed:
            note(line)
    for what in [key for key in EVERY if options.only and key in options.only]:
        for line in EVERY[what](options):
            note(line)


if __name__ == "__main__":
    main()
