"""dynamicAL (Wang et al., "Deep Active Learning by Leveraging Training Dynamics", NeurIPS 2022, arXiv 2110.08611)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.gradients import Gradients, pseudo_gradients
from alenv.ops import mask_without
from alenv.round import Round
from alenv.strategy import ScoreStrategy, best_first


class DynamicAL(ScoreStrategy):
    """Score |g(x)|^2 + 2 <g(x), sum of labelled gradients>: buy what speeds up training most.

    g is the gradient of the cross-entropy by the last layer, with the predicted class as the label; labelled examples have their
    own. The layer's gradients are outer products, so that the score is exact without writing any out. O((U + L) C D), memory C D
    beside the factors. The paper takes the gradient by all weights.

    The authors' code also buys in steps and takes off <g(x), mean gradient of a step> for every step bought before, against
    redundancy; the paper does not. `penalty` times that is taken off here.

    Args:
        penalty: 0 is the paper's, 1 that of the authors' code.
        step: candidates bought at once where there is a penalty.
    """

    family = "uncertainty"
    needs = frozenset({"probs", "embeddings", "labels", "labeled_embeddings", "head"})
    pointwise = True

    def __init__(self, penalty: float = 0.0, step: int = 100) -> None:
        if penalty < 0 or step < 1:
            raise ValueError(f"dynamical: expected penalty >= 0 and step >= 1, got {penalty} and {step}")
        self.penalty, self.step = penalty, step

    def score(self, round: Round) -> Float[Tensor, " U"]:
        """Return the change of the squared norm of the training gradient."""
        mine, h, (weight, bias) = pseudo_gradients(round), round.labeled_embeddings, round.head
        probs = (h @ weight.T + bias).softmax(1)
        probs[torch.arange(len(h), device=h.device), round.labels] -= 1
        return mine.norms + 2 * _along(mine, _sum(Gradients(probs, h)))

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the positions of the highest scores, those of each step less the penalty for the steps before."""
        scores, generator = self.scores(round), round.generator("dynamical")
        if self.penalty == 0:
            return best_first(scores, generator, budget)
        mine = pseudo_gradients(round)
        picks = torch.zeros(0, dtype=torch.int64, device=round.device)
        while len(picks) < budget:
            free = torch.nonzero(mask_without(len(round), picks)).flatten()
            bought = free[best_first(scores[free], generator, min(self.step, budget - len(picks)))]
            scores = scores - self.penalty * _along(mine, _sum(mine.at(bought)) / len(bought))
            picks = torch.cat([picks, bought])
        return picks


def _sum(gradients: Gradients) -> Float[Tensor, "C E"]:
    """Return the sum of the gradients; its last column is the bias's."""
    return torch.cat([gradients.a.T @ gradients.h, gradients.a.sum(0).unsqueeze(1)], 1)


def _along(gradients: Gradients, total: Float[Tensor, "C E"]) -> Float[Tensor, " n"]:
    """Return <g_i, total>."""
    return (gradients.a * torch.addmm(total[:, -1], gradients.h, total[:, :-1].T)).sum(1)
