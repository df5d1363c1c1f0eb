"""NoiseStability (Li et al., "Deep Active Learning with Noise Stability", AAAI 2024, arXiv 2205.13340)."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from alenv import geometry
from alenv.model import TaskModel, apply_heads
from alenv.round import Round
from alenv.strategy import Strategy

BATCH = 1024  # examples per forward pass
COLUMNS = 64  # logits computed at once: narrower products run at a fraction of the speed


class NoiseStability(Strategy):
    """Buy, farthest first, candidates whose probabilities move most and most differently under K small noises on the weights.

    Every parameter tensor w moves by scale |w| u / |u| with u ~ N(0, I), the same for all candidates. The features of a
    candidate are its K moves (p_k - p) / |p|, side by side; picks maximise the distance to the origin and to picks before.
    O(K) passes and O(B U min(K C, width)), memory U min(K C, width).

    The authors' code moves weights but not biases; the paper moves all parameters, and so do we.

    Args:
        draws: K.
        scale: norm of the noise relative to that of the tensor.
        scope: "all" parameters, or only the "head"'s, from the embeddings (an approximation that needs no pass).
        width: more features than this are projected at random to so many, which keeps distances to about 1 / sqrt(width).
    """

    family = "hybrid"

    def __init__(self, draws: int = 50, scale: float = 1e-3, scope: Literal["all", "head"] = "all", width: int = 512) -> None:
        if scope not in ("all", "head"):
            raise ValueError(f"noise_stability: expected scope=all or scope=head, got '{scope}'")
        self.draws, self.scale, self.scope, self.width = draws, scale, scope, width
        self.needs = frozenset({"model", "inputs"} if scope == "all" else {"embeddings", "head"})

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions farthest first."""
        moves = self.features(round)
        origin = moves.new_zeros(1, moves.shape[1])
        return geometry.kcenter(moves, budget, round.generator("noise_stability/ties"), origin)

    @torch.no_grad()
    def features(self, round: Round) -> Float[Tensor, "U F"]:
        """Return the moves of all candidates, F = min(K C, width)."""
        outputs = self._all(round) if self.scope == "all" else self._head(round)
        still = next(outputs)
        if bool(still.isnan().any()):
            raise ValueError("noise_stability: the model's probabilities are NaN; training diverged: lower trainer.lr")
        length, classes = still.norm(dim=1, keepdim=True), still.shape[1]
        exact = self.draws * classes <= self.width
        moves = still.new_zeros(len(still), min(self.draws * classes, self.width))
        projection = round.generator("noise_stability/projection")
        for k, probs in enumerate(outputs):
            move = (probs - still) / length
            if exact:
                moves[:, k * classes : (k + 1) * classes] = move
            else:
                mixing = torch.randn(classes, self.width, generator=projection, device=move.device) / self.width**0.5
                moves.addmm_(move, mixing)
        return moves

    def _all(self, round: Round) -> Iterator[Float[Tensor, "U C"]]:
        """Yield probabilities of the model as it is, then of K noisy copies."""
        model, generator = round.model, round.generator("noise_stability/noise")
        weights = {name: w for name, w in model.named_parameters() if not name.startswith("aux.")}
        yield _probs(model, weights, round.inputs)
        for _ in range(self.draws):
            yield _probs(model, {name: self._noisy(w, 1, generator)[0] for name, w in weights.items()}, round.inputs)

    def _head(self, round: Round) -> Iterator[Float[Tensor, "U C"]]:
        """Yield the same for a head on fixed features, several noisy copies a product."""
        weight, bias = round.head
        generator = round.generator("noise_stability/noise")
        yield (round.embeddings @ weight.T + bias).softmax(1)
        left = self.draws
        while left:
            count = min(left, max(1, COLUMNS // len(weight)))
            yield from apply_heads(
                round.embeddings, (self._noisy(weight, count, generator), self._noisy(bias, count, generator))
            ).softmax(2)
            left -= count

    def _noisy(self, w: Tensor, count: int, generator: torch.Generator) -> Float[Tensor, "count ..."]:
        """Return noisy copies of a parameter tensor."""
        u = torch.randn(count, w.numel(), generator=generator, device=w.device, dtype=w.dtype)
        u *= self.scale * w.norm() / u.norm(dim=1, keepdim=True)
        return w + u.unflatten(1, w.shape)


def _probs(model: TaskModel, weights: Mapping[str, Tensor], inputs: Tensor) -> Float[Tensor, "U C"]:
    return torch.cat([functional_call(model, dict(weights), (x,)).softmax(1) for x in inputs.split(BATCH)])
