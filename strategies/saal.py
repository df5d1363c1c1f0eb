"""SAAL (Kim et al., "SAAL: Sharpness-Aware Active Learning", ICML 2023)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, grad, vmap

from alenv import ops
from alenv.model import TaskModel
from alenv.round import Round
from alenv.strategy import Strategy, best_first

MODES = ("max", "diff", "max_diversity", "diff_diversity")
GRADIENTS = 2**26  # numbers that the gradients of a block may hold: 256 MB of float32
TINY = 1e-30


class SAAL(Strategy):
    """Buy where the loss at the model's own prediction is highest after the parameters w moved to make it worse.

    They move, for each candidate on its own, by rho w^2 g / | |w| g | for the gradient g of that loss: a step of sharpness-aware
    minimisation with the adaptive norm that the authors' code takes. With "diversity" the batch is drawn from the scores by
    k-means++, the highest first. Equal scores fall by lot.

    O(U C D + B U): for the last layer alone the move has a closed form, so by default the whole pool is scored by it. The paper
    moves all parameters, of a network too dear for the whole pool: `scope="all"` does so on a sub-pool, two passes forwards
    and one backwards per candidate.

    Args:
        mode: "max" scores the loss after the move, "diff" the rise; with "_diversity" appended (the paper's "max_diversity").
        scope: "last_layer" or "all", the parameters that move.
        rho: length of the move in the adaptive norm.
        subpool: candidates, drawn by lot, that `scope="all"` scores.
    """

    family = "hybrid"

    def __init__(
        self, mode: Literal["max", "diff", "max_diversity", "diff_diversity"] = "max_diversity",
        scope: Literal["last_layer", "all"] = "last_layer", rho: float = 0.05, subpool: int = 2000,
    ) -> None:  # fmt: skip
        if mode not in MODES:
            raise ValueError(f"saal: expected mode={' or '.join(MODES)}, got '{mode}'")
        if scope not in ("last_layer", "all"):
            raise ValueError(f"saal: expected scope=last_layer or all, got '{scope}'")
        self.mode, self.scope, self.rho, self.subpool = mode, scope, rho, subpool
        self.needs = frozenset({"embeddings", "logits", "head"} if scope == "last_layer" else {"model", "inputs"})

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions by score, or spread over the scores."""
        generator = round.generator("saal")
        lot = torch.randperm(len(round), generator=generator, device=round.device)
        if self.scope == "all":
            lot = lot[: max(budget, self.subpool)]
            scores = self.sharpness(round.model, round.inputs[lot])
        else:
            scores = torch.cat([self.last_layer(block) for block in round.blocks(*self.needs)])[lot]
        if self.mode.endswith("_diversity"):
            return lot[_spread(scores, budget, generator)]
        return lot[best_first(scores, generator, budget)]

    def last_layer(self, round: Round) -> Float[Tensor, " U"]:
        """Return scores in nats if only the last layer moves: logit c moves by rho r_c S_c / sqrt(sum_c r_c^2 S_c).

        Here r = p - onehot, and S_c = sum_j W_cj^2 h_j^2 + b_c^2; a factor of r cancels.
        """
        weight, bias = round.head
        logits = round.logits
        own = logits.argmax(1)
        error = _others(logits, own).softmax(1).scatter(1, own.unsqueeze(1), -1.0)
        size = round.embeddings.square() @ weight.square().T + bias.square()
        length = (error.square() * size).sum(1, keepdim=True).sqrt().clamp(min=TINY)
        return self._score(_gap(logits, own), _gap(logits + self.rho * error * size / length, own))

    def sharpness(self, model: TaskModel, inputs: Tensor) -> Float[Tensor, " U"]:
        """Return scores in nats if all parameters move."""
        weights = {name: w.detach() for name, w in model.named_parameters() if not name.startswith("aux.")}

        def gap(weights: dict[str, Tensor], x: Tensor, own: Tensor) -> Tensor:
            return _gap(functional_call(model, weights, (x.unsqueeze(0),)), own.unsqueeze(0)).squeeze(0)

        def score(x: Tensor, own: Tensor) -> Tensor:
            gradient = grad(gap)(weights, x, own)
            length = torch.stack([(w * gradient[name]).square().sum() for name, w in weights.items()]).sum().sqrt()
            step = self.rho / length.clamp(min=TINY)
            moved = {name: w + step * w.square() * gradient[name] for name, w in weights.items()}
            return self._score(gap(weights, x, own), gap(moved, x, own))

        rows = min(1024, max(1, GRADIENTS // sum(w.numel() for w in weights.values())))
        with torch.no_grad():
            return torch.cat([vmap(score)(x, model(x).argmax(1)) for x in inputs.split(rows)])

    def _score(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the loss after the move or its rise; cross-entropy is softplus of the gap."""
        loss = F.softplus(after)
        return loss - F.softplus(before) if self.mode.startswith("diff") else loss


def _others(logits: Float[Tensor, "n C"], own: Int[Tensor, " n"]) -> Float[Tensor, "n C"]:
    classes = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(classes == own.unsqueeze(1), -torch.inf, logits)


def _gap(logits: Float[Tensor, "n C"], own: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return log sum_{c != y} exp l_c - l_y.

    Its gradient is that of the cross-entropy up to a positive factor, and does not round to zero where the model is sure.
    """
    return _others(logits, own).logsumexp(1) - logits.gather(1, own.unsqueeze(1)).squeeze(1)


def _spread(scores: Float[Tensor, " n"], count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """Return the highest score, then rows drawn in proportion to the squared distance of scores to the nearest drawn before.

    Elementwise, one by one: the products that make `geometry.spread` fast would round scores that lie close together.
    """
    picks = [best_first(scores, generator, 1).squeeze(0)]
    free = torch.ones_like(scores).index_fill_(0, picks[0], 0.0)
    distance = torch.full_like(scores, torch.inf)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (scores - scores[picks[-1]]).square())
        picks.append(ops.draw(torch.where(distance.sum() > 0, distance, free), generator))
        free.index_fill_(0, picks[-1], 0.0)
    return torch.stack(picks)
