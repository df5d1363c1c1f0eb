"""VeSSAL (Saran, Yousefi, Krishnamurthy, Langford & Ash, "Streaming Active Learning with Deep Neural Networks", ICML 2023)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.ops import mask_without
from alenv.round import Round
from alenv.strategy import Strategy

BLOCK = 512  # candidates of the stream looked at together


class Vessal(Strategy):
    """See the candidates once, in random order; buy each with probability in proportion to the volume its gradient adds.

    The t-th is bought with probability q_t g' S^-1 g / tr(S^-1 A_t). Its gradient g = (p - onehot(argmax p)) x h is the last
    layer's; S = I / scale + sum of g g' over those bought; A_t is the mean of g g' over those seen, itself included;
    q_t = (B - bought) / (U - t + 1). Should the stream end with fewer than B, the rest are drawn uniformly, as in the authors'
    code.
    O(B U (C + D + B)), memory U + B (B + C + D + panel).

    Nothing of size C D is formed: g' S^-1 g comes from products of gradients and the Cholesky factor of those bought (matrix
    inversion lemma), exactly, with the draws of one-by-one streaming. The trace is exact while at most `panel` have been seen;
    after that the first `panel`, a uniform sample of the stream, stand for all seen.

    Args:
        scale: S^-1 before anything is bought, per unit of squared gradient.
        panel: candidates that stand for all seen in the trace.
    """

    family = "hybrid"
    needs = frozenset({"probs", "embeddings"})

    def __init__(self, scale: float = 100.0, panel: int = 2048) -> None:
        if scale <= 0 or panel < 1:
            raise ValueError(f"vessal: expected scale > 0 and panel >= 1, got {scale} and {panel}")
        self.scale, self.panel = scale, panel

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the stream."""
        generator, size = round.generator("vessal"), len(round)
        stream = torch.randperm(size, generator=generator, device=round.device)
        lots = torch.rand(size, generator=generator, device=round.device, dtype=torch.float64)
        panel = self._gradients(round, stream[: self.panel], budget)
        bought = self._gradients(round, stream[:budget], budget)  # places, written over
        picks: list[int] = []
        for start, end in [(0, len(panel)), *_cuts(len(panel), size)]:
            block = panel if start == 0 else self._gradients(round, stream[start:end], budget)
            block.catch_up(bought, len(picks))
            now = start
            while len(picks) < budget:
                left = torch.arange(size - now, size - end, -1, device=round.device)
                seen = torch.arange(1, end + 1, device=round.device)
                trace = (panel.volume.cumsum(0) / seen)[now:] if start == 0 else panel.volume.mean()
                share = torch.where(trace > 0, block.volume[now - start :] / trace, 1.0)
                hits = torch.nonzero(lots[now:end] < (budget - len(picks)) / left * share).flatten()
                if not len(hits):
                    break
                now += int(hits[0])
                bought.take(len(picks), block, now - start)
                for members in (block,) if block is panel else (block, panel):
                    members.update(bought, len(picks))
                picks.append(now)
                now += 1
        taken = torch.tensor(picks, dtype=torch.int64, device=round.device)
        spare = torch.nonzero(mask_without(size, taken)).flatten()  # the stream is in random order
        return stream[torch.cat([taken, spare])[:budget]]

    def _gradients(self, round: Round, rows: Int[Tensor, " n"], budget: int) -> "_Gradients":
        probs = round.probs[rows].double()
        a = probs - F.one_hot(probs.argmax(1), probs.shape[1])
        return _Gradients(a, round.embeddings[rows].double(), self.scale, budget)


class _Gradients:
    """Gradients g = a x h in float64, and what volume each would add.

    Attributes:
        volume: (n,) g' S^-1 g.
        factor: (n, B) row i of the Cholesky factor of S's Gram matrix, as if i were bought next.
    """

    def __init__(self, a: Float[Tensor, "n C"], h: Float[Tensor, "n D"], scale: float, budget: int) -> None:
        self.a, self.h, self.scale = a, h, scale
        self.norm = a.square().sum(1) * h.square().sum(1)
        self.volume, self.factor = scale * self.norm, a.new_zeros(len(a), budget)

    def __len__(self) -> int:
        return len(self.a)

    def catch_up(self, bought: "_Gradients", count: int) -> None:
        """Bring volumes up to date with the first `count` bought."""
        if count:
            products = (self.a @ bought.a[:count].T) * (self.h @ bought.h[:count].T)
            lower = bought.factor[:count, :count]
            self.factor[:, :count] = torch.linalg.solve_triangular(lower, products.T, upper=False).T
            self.volume -= self.scale * self.factor[:, :count].square().sum(1)

    def take(self, place: int, block: "_Gradients", row: int) -> None:
        """Write row `row` of `block` to `place`: bought."""
        self.a[place], self.h[place], self.factor[place] = block.a[row], block.h[row], block.factor[row]
        rest = block.norm[row] + 1 / self.scale - block.factor[row].square().sum()
        self.factor[place, place] = rest.clamp(min=0.5 / self.scale).sqrt()  # 1 / scale at least, but for rounding

    def update(self, bought: "_Gradients", last: int) -> None:
        """Bring volumes up to date with the one bought last."""
        products = (self.a @ bought.a[last]) * (self.h @ bought.h[last])
        known = self.factor[:, :last] @ bought.factor[last, :last]
        self.factor[:, last] = (products - known) / bought.factor[last, last]
        self.volume = (self.volume - self.scale * self.factor[:, last].square()).clamp_(min=0)


def _cuts(start: int, size: int) -> list[tuple[int, int]]:
    return [(i, min(i + BLOCK, size)) for i in range(start, size, BLOCK)]
