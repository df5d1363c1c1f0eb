"""BatchBALD (Kirsch, van Amersfoort & Gal, "BatchBALD", NeurIPS 2019, arXiv 1906.08158)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv import geometry, ops
from alenv.round import Round
from alenv.strategy import Strategy, best_first

RUNNING_ELEMENTS = 2**24  # probabilities kept for the candidates in the running: 64 MB of float32
LEADERS = 32  # candidates scored at once, doubled until the best is found
COARSE, FINE = 8, 64  # groups of configurations, for upper bounds
RESOLVED = 1e-3  # nats
ROUNDING = 1e-6  # nats that float32 gains may be off


class BatchBALD(Strategy):
    """Greedily maximise I(y_1 .. y_B; model), the information a whole batch of labels holds about the stochastic draws.

    The labels of n picks have C^n configurations s; each leaves weights w(s) over the T draws. The gain of x is
    E_s[H(sum_t w_t p_t(x)) - sum_t w_t H(p_t(x))]. All configurations count while they are at most `configurations`, then as many
    drawn in strata, equal ones merged.

    The picks are those of scoring everybody, but few are scored. While all configurations count, gains only shrink as the batch
    grows, so old ones are upper bounds; drawn configurations are put into groups of like weights, and as the gain is concave
    in w, the groups' mean weights give upper bounds: `COARSE` groups for all, `FINE` ones for those that remain. O(T U C) once; a
    pick is then O((U COARSE + leaders S) T C) for S configurations. Memory T C numbers for each candidate in the running.

    Deviations: the gain's second term is the mean over the same configurations as the first; the paper takes it over all draws,
    which has the same expectation and more noise. In the running are the `RUNNING_ELEMENTS` / (T C) candidates of highest
    BALD score (167,772 at T = C = 10; 16,777 at C = 100), at least B. Once less than `RESOLVED` nats of doubt about the draw
    would be left, no gain exceeds that, and the rest is bought by BALD score.

    Args:
        configurations: S at most.
    """

    family = "bayesian"
    needs = frozenset({"mc_probs"})

    def __init__(self, configurations: int = 2000) -> None:
        self.configurations = configurations

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the greedy choice."""
        generator, grouping = round.generator("batchbald"), round.generator("batchbald/groups")
        alone = torch.cat([ops.mutual_information(block.mc_probs) for block in round.blocks("mc_probs")])
        running = RUNNING_ELEMENTS // (round.num_draws * round.num_classes)
        order = best_first(alone, generator, max(budget, running))
        draws, bound = round.subset(order).mc_probs, alone[order]  # (T, n, C), (n,)
        known = _nothing(draws)
        picks = [torch.zeros_like(order[0])]
        while len(picks) < budget:
            known = _bought(known, draws[:, picks[-1]], self.configurations, generator)
            bound[picks[-1]] = -torch.inf
            if float(_doubt(known)) < RESOLVED:
                left = torch.nonzero(ops.mask_without(len(order), torch.stack(picks))).flatten()
                picks.extend(left[: budget - len(picks)])
                break
            if known.drawn:
                bound = _bounds(known, draws, bound, grouping)
            picks.append(_best(known, draws, bound))
        return order[torch.stack(picks)]


class _Known(NamedTuple):
    """What the labels bought so far may be: probabilities of their configurations, and the weights each leaves over the draws."""

    mass: Float[Tensor, " S"]
    weights: Float[Tensor, "S T"]
    drawn: bool  # a sample of the configurations, not all of them


def _nothing(draws: Float[Tensor, "T n C"]) -> _Known:
    return _Known(draws.new_ones(1), draws.new_full((1, len(draws)), 1 / len(draws)), False)


def _doubt(known: _Known) -> Float[Tensor, ""]:
    """Return the entropy that is left over the draws, in expectation: no gain exceeds it."""
    return known.mass @ ops.entropy(known.weights)


def _bought(known: _Known, probs: Float[Tensor, "T C"], limit: int, generator: torch.Generator) -> _Known:
    """Extend every configuration by a label; keep all, or draw `limit` of them."""
    mass = (known.mass[:, None] * (known.weights @ probs)).flatten().double()
    drawn = len(mass) > limit
    if not drawn:
        kept = torch.nonzero(mass > 0).flatten()
        mass = mass[kept]
    else:
        u = torch.rand(limit, generator=generator, device=mass.device, dtype=mass.dtype)
        strata = (u + torch.arange(limit, device=mass.device)) / limit
        total = mass.cumsum(0)
        hits = torch.searchsorted(total, strata * total[-1], right=True).clamp(max=len(mass) - 1)
        kept, counts = hits.unique_consecutive(return_counts=True)
        mass = counts.double()
    classes = probs.shape[1]
    weights = known.weights[kept // classes] * probs.T[kept % classes]
    return _Known((mass / mass.sum()).to(probs), weights / weights.sum(1, keepdim=True), known.drawn or drawn)


def _bounds(
    known: _Known, draws: Float[Tensor, "T n C"], bound: Float[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, " n"]:
    """Return upper bounds of the gains; -inf stays."""
    bound = torch.where(bound > -torch.inf, _gains(_merged(known, COARSE, generator), draws), -torch.inf)
    leaders = bound.topk(min(LEADERS, int((bound > -torch.inf).sum()))).indices
    close = torch.nonzero(bound + ROUNDING >= _gains(known, draws[:, leaders]).max()).flatten()
    bound[close] = _gains(_merged(known, FINE, generator), draws[:, close])
    return bound


def _merged(known: _Known, groups: int, generator: torch.Generator) -> _Known:
    """Return groups of configurations with like weights as one configuration each."""
    if len(known.mass) <= groups:
        return known
    _, group, _ = geometry.kmeans(known.weights.sqrt(), groups, generator, iterations=3, trials=1)
    mass = known.mass.new_zeros(groups).index_add_(0, group, known.mass)
    weights = known.weights.new_zeros(groups, known.weights.shape[1]).index_add_(0, group, known.mass[:, None] * known.weights)
    full = mass > 0
    return _Known(mass[full], weights[full] / mass[full, None], known.drawn)


def _best(known: _Known, draws: Float[Tensor, "T n C"], bound: Float[Tensor, " n"]) -> Int[Tensor, ""]:
    """Return the candidate of largest gain, scoring those that `bound` lets hope; their gains take its place."""
    values, leaders = bound.sort(descending=True)
    best, start, size = -torch.inf, 0, LEADERS
    while start < len(bound) and float(values[start]) + ROUNDING >= best:
        part = leaders[start : start + size]
        bound[part] = torch.where(values[start : start + size] > -torch.inf, _gains(known, draws[:, part]), -torch.inf)
        best = float(bound[leaders[: start + size]].max())
        start, size = start + size, 2 * size
    return leaders[bound[leaders[:start]].argmax()]


def _gains(known: _Known, draws: Float[Tensor, "T n C"]) -> Float[Tensor, " n"]:
    """Return in nats what the label of each candidate would add to what is known about the draws; in pieces."""
    rows = max(1, ops.PIECE_ELEMENTS // (draws.shape[2] * min(len(known.mass), FINE)))
    return torch.cat([_gains_of_few(known, part) for part in draws.split(rows, dim=1)])


def _gains_of_few(known: _Known, draws: Float[Tensor, "T n C"]) -> Float[Tensor, " n"]:
    flat, apart = draws.flatten(1), ops.entropy(draws)  # (T, n C), (T, n)
    gain = torch.zeros_like(apart[0])
    size = max(1, ops.PIECE_ELEMENTS // max(1, flat.shape[1]))
    for mass, weights in zip(known.mass.split(size), known.weights.split(size), strict=True):
        mixed = (weights @ flat).unflatten(1, draws.shape[1:])  # (s, n, C)
        gain += mass @ (ops.entropy(mixed) - weights @ apart)
    return gain.clamp_(min=0)
