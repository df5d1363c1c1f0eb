"""LfOSA (Ning, Zhao, Li & Huang, "Active Learning for Open-Set Annotation", CVPR 2022, arXiv 2201.06758)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from alenv.model import TaskModel
from alenv.round import Round
from alenv.strategy import ScoreStrategy

BLOCK = 2048  # examples per forward pass of the detector
REGULARISATION, TOLERANCE, ITERATIONS = 5e-4, 1e-2, 10  # of the mixtures, as in the authors' code


class LfOSA(ScoreStrategy):
    """Buy the candidates that a detector of C classes and "unknown" most surely takes for one of the classes.

    The detector is trained afresh on the labelled examples and on purchases that turned out to be of no class. The largest
    logits of the candidates predicted as one class are split by a mixture of two Gaussians; the score is the probability of
    the higher one. O(training + U C), memory a forward pass and one number per candidate.

    Candidates predicted "unknown" come last (-1), then those alone in their class, which no mixture fits (0); a class whose
    logits are all equal scores 1/2. The authors' code drops such groups and may then return fewer candidates than asked for.
    AdamW instead of SGD with steps; the centre loss of an earlier version, of weight 0 in the experiments, is left out.

    Args:
        detector: "network", a net of the task model's family on the inputs, as in the paper; or "head", a small net on the
            task model's features: cheap, and possible where there are only arrays.
        temperature: what logits are divided by in the loss.
        epochs: passes over the examples.
        min_steps: optimiser steps at least, however few examples there are.
        batch_size: examples a step.
        lr: peak learning rate.
    """

    family = "open-set"

    def __init__(
        self, detector: Literal["network", "head"] = "network", temperature: float = 0.5, epochs: int = 100, min_steps: int = 200,
        batch_size: int = 64, lr: float = 2e-3,
    ) -> None:  # fmt: skip
        if detector not in ("network", "head"):
            raise ValueError(f"expected detector=network or head, got '{detector}'")
        self.detector, self.temperature = detector, temperature
        self.epochs, self.min_steps, self.batch_size, self.lr = epochs, min_steps, batch_size, lr
        own = detector == "head"
        parts = (
            ("embeddings", "labeled_embeddings", "discarded_embeddings")
            if own
            else ("inputs", "labeled_inputs", "discarded_inputs")
        )
        self.needs = frozenset({*parts, "labels"} if own else {*parts, "labels", "model"})

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return the probability of belonging to the upper Gaussian of the predicted class; -1 if predicted "unknown"."""
        return round.once(self, self._detected)

    def purity(self, round: Round) -> Float[Tensor, " U"]:
        """Return the score: purity is all that LfOSA looks at."""
        return self.score(round)

    def _detected(self, round: Round) -> Float[Tensor, " U"]:
        x, known, unknown = self._examples(round)
        targets = torch.cat([round.labels, round.labels.new_full((len(unknown),), round.num_classes)])
        net = self._net(round, known)
        with torch.enable_grad():
            self._train(net, torch.cat([known, unknown]), targets, round)
        with torch.no_grad():
            top = [net(block).max(1) for block in x.split(BLOCK)]
        value, predicted = torch.cat([t.values for t in top]), torch.cat([t.indices for t in top])
        inside = predicted < round.num_classes
        scores = torch.full_like(value, -1.0)
        scores[inside] = upper_shares(value[inside], predicted[inside], round.num_classes)
        return scores

    def _examples(self, round: Round) -> tuple[Num[Tensor, "U ..."], Num[Tensor, "L ..."], Num[Tensor, "X ..."]]:
        """Return the candidates, the labelled examples and those known to be of no class, as the detector sees them."""
        if self.detector == "network":
            return round.inputs, round.labeled_inputs, round.discarded_inputs[round.outside]
        return round.embeddings, round.labeled_embeddings, round.discarded_embeddings[round.outside]

    def _net(self, round: Round, known: Tensor) -> TaskModel:
        outputs = round.num_classes + 1
        with round.scoped("lfosa/init"):
            if self.detector == "network":
                return round.model.companion(outputs).to(round.device)
            width = known.shape[1]
            spread = float(known.std(unbiased=False).clamp(min=1e-6))
            body = nn.Sequential(nn.Linear(width, 128), nn.ReLU())
            return TaskModel(body, 128, outputs, mean=known.mean(0), std=spread).to(round.device)

    def _train(self, net: TaskModel, x: Num[Tensor, "n ..."], targets: Int[Tensor, " n"], round: Round) -> None:
        order, noise = round.generator("lfosa/order"), round.generator("lfosa/dropout")
        per_epoch = math.ceil(len(x) / self.batch_size)
        epochs = max(self.epochs, math.ceil(self.min_steps / per_epoch))
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
        net.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=order, device=x.device).tensor_split(per_epoch):
                logits = net.head(net.dropped(net.features(x[rows]), noise))
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(logits / self.temperature, targets[rows]).backward()
                optimizer.step()
                schedule.step()
        net.eval()


def upper_shares(values: Float[Tensor, " n"], group: Int[Tensor, " n"], groups: int) -> Float[Tensor, " n"]:
    """Return, for each value, the posterior of the upper of two Gaussians fitted to its group; all groups at once by EM.

    Each fit starts from 2-means (from the extremes) and ends when its mean log-likelihood changes by less than the tolerance.
    A group of one gets 0, a group of equal values 1/2.
    """
    x = values.double()
    sizes = torch.bincount(group, minlength=groups).double()
    low = x.new_zeros(groups).scatter_reduce_(0, group, x, "amin", include_self=False)
    high = x.new_zeros(groups).scatter_reduce_(0, group, x, "amax", include_self=False)
    per_group = _Sums(group, groups)
    means = torch.stack([low, high], 1)  # (G, 2)
    for _ in range(ITERATIONS):
        share = F.one_hot((x[:, None] - means[group]).abs().argmin(1), 2).double()
        mass = per_group(share)
        means = torch.where(mass > 0, per_group(share * x[:, None]) / mass.clamp(min=1), means)

    def fitted(share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means that `share` implies, and log densities times weights."""
        mass = per_group(share).clamp(min=1e-12)
        means = per_group(share * x[:, None]) / mass
        variances = per_group(share * (x[:, None] - means[group]).square()) / mass + REGULARISATION
        log_weights = (mass / sizes.clamp(min=1)[:, None]).log() - 0.5 * variances.log()
        return means, log_weights[group] - 0.5 * (x[:, None] - means[group]).square() / variances[group]

    before = x.new_full((groups,), -torch.inf)
    fitting = torch.ones(groups, dtype=torch.bool, device=x.device)
    for _ in range(ITERATIONS):
        _, joint = fitted(share)
        share = torch.where(fitting[group, None], joint.softmax(1), share)
        likelihood = per_group(joint.logsumexp(1)[:, None])[:, 0] / sizes.clamp(min=1)
        fitting &= (likelihood - before).abs() >= TOLERANCE
        before = likelihood
    means, joint = fitted(share)
    share = joint.softmax(1)
    found = share.gather(1, means.argmax(1)[group, None])[:, 0]
    found = torch.where((high > low)[group], found, 0.5)
    return torch.where(sizes[group] > 1, found, 0.0).to(values)


class _Sums:
    """Sums of rows by group."""

    def __init__(self, group: Int[Tensor, " n"], groups: int) -> None:
        self._group, self._groups = group, groups

    def __call__(self, rows: Float[Tensor, "n k"]) -> Float[Tensor, "G k"]:
        return rows.new_zeros(self._groups, rows.shape[1]).index_add_(0, self._group, rows)
