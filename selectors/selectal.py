"""SelectAL: Hacohen & Weinshall, "How to select which active learning strategy is best suited ...", NeurIPS 2023, 2306.03543."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv import geometry
from alenv.ballot import Ballot
from alenv.bandits import highest
from alenv.job import Job
from alenv.round import Round
from alenv.selector import Context, Observation, Selector, Transition
from alenv.strategy import best_first

REGIMES = ("random", "low", "high")


class Trial(NamedTuple):
    """One training without some labelled examples, and who is left to test it on.

    Attributes:
        regime: 0 random, 1 low, 2 high.
        kept: (L,) who is trained on.
        held: positions in the labelled set that are tested.
    """

    regime: int
    kept: Bool[Tensor, " L"]
    held: Int[Tensor, " h"]


class SelectAL(Selector):
    """Find out what kind of labelled example is missed most when it is removed, and buy that kind.

    Per class, a few labelled examples are removed as three surrogates choose them: at random; typical ones (low budget);
    untypical ones (high budget). A model is trained on the rest and tested on held-out labels. The surrogate whose removal
    leaves the lowest accuracy names the regime; random sampling, TypiClust or `high` then buys the batch. Ties fall by lot.
    No label of the pool is read. `repeats` x (random_draws + 2) trainings a round, on up to L labels.

    Surrogates cluster a class's examples into as many clusters as are removed and take the most (or least) typical of each,
    typicality being 1 / mean distance to the min(20, size / 2) nearest in the cluster. Two examples are equally typical, so
    at two labels a class the surrogates coincide and the regime falls by lot.

    Deviation: labels are held out before the removal, not after it, so that all surrogates of a repeat are tested on the same,
    unchanged sample.

    Args:
        share: of the labelled set to remove (epsilon); at least one example per class, at most the smallest class.
        repeats: held-out draws.
        random_draws: draws of the random surrogate in each of them.
        held_out: share of the labelled set that is tested on.
        features: what typicality is measured on: "inputs", "embeddings", or the name of a feature provider (self-supervised ones
            are the paper's).
        high: the strategy for high budgets.
    """

    action_kind = "pick"

    def __init__(
        self, share: float = 0.05, repeats: int = 5, random_draws: int = 5, held_out: float = 0.05, features: str = "inputs",
        high: str = "badge",
    ) -> None:  # fmt: skip
        if not (0 < share < 1 and 0 < held_out < 1) or repeats < 1 or random_draws < 1:
            raise ValueError(
                "selectal: expected share and held_out in (0, 1), repeats and random_draws >= 1, "
                f"got {share}, {held_out}, {repeats}, {random_draws}"
            )
        self.share, self.repeats, self.random_draws, self.held_out = share, repeats, random_draws, held_out
        self.features, self.high = features, high
        self.requires = ("uniform", "typiclust", high)

    def begin(self, context: Context) -> None:
        """Forget the last trials."""
        super().begin(context)
        self._logs: dict[str, float] = {}

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Run the trials and return the strategy of the regime."""
        round = ballot.round
        trials = [trial for repeat in range(self.repeats) for trial in self.trials(round, repeat)]
        accuracy = self.accuracies(round, trials)
        self._logs = {f"accuracy/{name}": value for name, value in zip(REGIMES, accuracy.tolist(), strict=True)}
        regime = highest(-accuracy, self.context.streams.on("cpu")("selector/selectal", round.index))
        return ballot.names.index(self.requires[regime])

    def update(self, transition: Transition) -> dict[str, float]:
        """Return the accuracies of the last trials."""
        return self._logs

    def trials(self, round: Round, repeat: int) -> list[Trial]:
        """Return the trials of one repeat; none if nothing would be left to train on."""
        labels, x = round.labels, self._points(round)
        generator = round.generator(f"selectal/{repeat}")
        lot = torch.randperm(len(labels), generator=generator, device=labels.device)
        held = lot[: max(1, math.ceil(self.held_out * len(labels)))]
        rest = torch.ones(len(labels), dtype=torch.bool, device=labels.device).index_fill(0, held, False)
        counts = torch.bincount(labels[rest], minlength=round.num_classes)
        present = torch.nonzero(counts).flatten().tolist()
        if not present:
            return []
        each = min(max(1, int(self.share * len(labels) / round.num_classes)), int(counts[counts > 0].min()))
        if each * len(present) == int(rest.sum()):
            return []
        classes = [torch.nonzero(rest & (labels == c)).flatten() for c in present]
        trials = []
        for regime in [0] * self.random_draws + [1, 2]:
            removed = torch.cat([members[_choose(x[members], each, regime, generator)] for members in classes])
            trials.append(Trial(regime, rest.index_fill(0, removed, False), held))
        return trials

    def accuracies(self, round: Round, trials: list[Trial]) -> Float[Tensor, " 3"]:
        """Return the mean accuracy on held-out labels of each regime's trials; zeros if there are none."""
        inputs, labels, trainer = round.labeled_inputs, round.labels, self.context.trainer
        models = trainer.fit_many([
            Job(lambda: self.context.net(None), inputs[t.kept], labels[t.kept], self.context.streams, round.index)
            for t in trials
        ])  # fmt: skip
        sums, counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for trial, model in zip(trials, models, strict=True):
            right = trainer.outputs(model, inputs[trial.held]).logits.argmax(1) == labels[trial.held]
            sums[trial.regime] += float(right.double().mean())
            counts[trial.regime] += 1
        return sums / counts.clamp(min=1)

    def _points(self, round: Round) -> Float[Tensor, "L F"]:
        if self.features == "inputs":
            return round.labeled_inputs.flatten(1).float()
        return round.labeled_embeddings if self.features == "embeddings" else round.features(self.features).labeled


def _choose(x: Float[Tensor, "n F"], count: int, regime: int, generator: torch.Generator) -> Int[Tensor, " k"]:
    """Return `count` rows as a surrogate removes them: at random (0), or the most (1) or least (2) typical of each cluster."""
    if regime == 0:
        return torch.randperm(len(x), generator=generator, device=x.device)[:count]
    _, cluster, _ = geometry.kmeans(x, count, generator)
    distances = geometry.squared_distances(x, x).sqrt().masked_fill(cluster.unsqueeze(1) != cluster, torch.inf)
    near = distances.fill_diagonal_(torch.inf).sort(1).values
    neighbors = (torch.bincount(cluster)[cluster] // 2).clamp(max=20)
    counted = torch.arange(len(x), device=x.device) < neighbors.unsqueeze(1)
    mean = torch.where(counted, near, 0).sum(1) / neighbors.clamp(min=1)
    score = -mean if regime == 1 else mean  # typicality is 1 / mean
    order = best_first(score, generator)
    order = order[torch.sort(cluster[order], stable=True).indices]  # by cluster, best first
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = cluster[order][1:] != cluster[order][:-1]
    return torch.cat([order[first], order[~first]])[:count]  # clusters of coinciding points may be fewer
