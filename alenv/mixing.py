"""Weights over strategies -> one batch."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alenv.ballot import Ballot
from alenv.strategy import best_first

Mixing = Literal["quota", "slots", "blend"]
NOBODY = "uniform"  # who is named for a sample that no strategy wished for


class Batch(NamedTuple):
    """What will be bought, best first.

    Attributes:
        positions: (B,) distinct.
        chosen_by: (B,) names of strategies.
        propensity: (B,) probability of that sample at its slot given the earlier slots, summed over strategies; 1 where nothing
            was drawn by lot.
        weights: (S,) the action as weights, or the mean weights over what is bought.
        advice: (S, B) probability each strategy put on that sample at its slot; zeros where the mixing does not draw.
    """

    positions: Int[Tensor, " B"]
    chosen_by: tuple[str, ...]
    propensity: Float[Tensor, " B"]
    weights: Float[Tensor, " S"]
    advice: Float[Tensor, "S B"]


def mix(how: Mixing, weights: Float[Tensor, " S"], ballot: Ballot, budget: int, generator: torch.Generator) -> Batch:
    """Turn one weight per strategy into a batch of min(budget, U)."""
    weights = weights / weights.sum()
    budget = min(budget, len(ballot.round))
    return {"quota": quota, "slots": slots, "blend": blend}[how](weights, ballot, budget, generator)


def allot(weights: Float[Tensor, " S"], budget: int, generator: torch.Generator) -> list[int]:
    """Divide `budget` seats by largest remainder; equal remainders fall by lot."""
    shares = [weight * budget for weight in weights.tolist()]
    seats = [math.floor(share) for share in shares]
    left = budget - sum(seats)
    if left:  # there is none where one strategy buys all
        lot = torch.randperm(len(weights), generator=generator, device=weights.device).tolist()
        for s in sorted(lot, key=lambda s: seats[s] - shares[s])[:left]:
            seats[s] += 1
    return seats


def draw_seats(weights: Float[Tensor, " S"], budget: int, generator: torch.Generator) -> list[int]:
    """Divide `budget` seats so that each strategy's expectation is exactly its share, and its seats next to it.

    Systematic sampling in random order: one lot decides all remainders.
    """
    lot = torch.randperm(len(weights), generator=generator, device=weights.device)
    start = torch.rand((), generator=generator, device=weights.device, dtype=torch.float64)
    ends = (weights[lot].double().cumsum(0) * budget + start).floor()
    ends[-1] = budget
    seats = torch.zeros(len(weights), dtype=torch.int64, device=weights.device)
    seats[lot] = torch.diff(ends, prepend=ends.new_zeros(1)).long()
    return [int(s) for s in seats.tolist()]


def quota(weights: Float[Tensor, " S"], ballot: Ballot, budget: int, generator: torch.Generator) -> Batch:
    """Give each strategy its share of the batch, by largest remainder; only ties of remainders fall by lot.

    Strategies take turns in order of weight, each taking the first of its B wishes that are not taken yet: there are
    always enough, since the others hold at most B - q.
    """
    seats = allot(weights, budget, generator)
    if budget and budget in seats:  # one strategy buys all
        s = seats.index(budget)
        return _batch(ballot, ballot.wish(s, budget), [ballot.names[s]] * budget, weights)
    wishes = [ballot.wish(s, budget).tolist() if seat else [] for s, seat in enumerate(seats)]
    taken, by = _turns(seats, weights, wishes)
    return _batch(ballot, taken, [ballot.names[s] for s in by], weights)


def _turns(seats: list[int], weights: Float[Tensor, " S"], wishes: list[list[int]]) -> tuple[list[int], list[int]]:
    """Return positions and who took them: in order of weight, each strategy takes the first of its wishes that are free."""
    taken: list[int] = []
    by: list[int] = []
    heaviest = weights.tolist()
    for s in sorted(range(len(heaviest)), key=lambda s: -heaviest[s]):
        known = set(taken)
        free = [p for p in wishes[s] if p not in known][: seats[s]]
        taken += free
        by += [s] * len(free)
    return taken, by


def slots(weights: Float[Tensor, " S"], ballot: Ballot, budget: int, generator: torch.Generator) -> Batch:
    """Draw a strategy for every slot; it takes its next wish that is not taken, or draws from its law if it is stochastic.

    This is the mixing whose propensities importance weighting needs.
    """
    used = [s for s in range(len(weights)) if weights[s] > 0]
    wishes = {s: iter(ballot.wish(s, budget).tolist()) for s in used}
    upcoming = {s: next(wishes[s], None) for s in used}
    drawn = torch.multinomial(weights, max(1, budget), replacement=True, generator=generator).tolist()[:budget]
    taken: list[int] = []
    propensity, advice = [], []
    for s in drawn:
        known, done = set(taken), torch.tensor(taken, dtype=torch.int64, device=ballot.round.device)
        for k in used:
            while upcoming[k] in known:
                upcoming[k] = next(wishes[k])
        laws = {k: law for k in used if (law := ballot.law(k, done)) is not None}
        position = int(torch.multinomial(laws[s], 1, generator=generator)) if s in laws else upcoming[s]
        assert position is not None  # B wishes cannot all be taken before the last slot
        column = torch.zeros_like(weights)
        for k in used:
            column[k] = laws[k][position] if k in laws else float(upcoming[k] == position)
        taken.append(position)
        advice.append(column)
        propensity.append(weights @ column)
    batch = _batch(ballot, taken, [ballot.names[s] for s in drawn], weights)
    return batch._replace(propensity=torch.stack(propensity), advice=torch.stack(advice, 1)) if taken else batch


def blend(weights: Float[Tensor, " S"], ballot: Ballot, budget: int, generator: torch.Generator) -> Batch:
    """Buy the highest weighted sums of scores, each scaled to [0, 1] over the candidates; ties fall by lot."""
    used = [s for s in range(len(weights)) if weights[s] > 0]
    parts = torch.stack([weights[s] * ballot.score(s) for s in used])
    positions = best_first(parts.sum(0), generator, budget)
    by = [ballot.names[used[i]] for i in parts[:, positions].argmax(0).tolist()]
    return _batch(ballot, positions, by, weights)


def mark_count(votes: float, budget: int, candidates: int) -> int:
    """Return m = ceil(votes x budget), at least the budget, at most the candidates."""
    return min(candidates, max(budget, math.ceil(votes * budget - 1e-9)))  # 1.1 x 10 is 11, not 12


def sample_mix(weights: Float[Tensor, "U S"], ballot: Ballot, budget: int, votes: float, generator: torch.Generator) -> Batch:
    """Buy the candidates with the highest weighted sum of votes for them, each with its own weights over strategies.

    AutoAL's query rule: score(x) = sum_s w_s(x) [x is among the first m wishes of s], m = ceil(votes x budget). Ties fall by lot;
    so unmarked candidates, all of score 0, come uniformly, last.

    Args:
        weights: rows sum to one.
        ballot: the strategies' wishes.
        budget: B.
        votes: r >= 1.
        generator: for ties.
    """
    budget = min(budget, len(ballot.round))
    marks = ballot.votes(mark_count(votes, budget, len(ballot.round)))
    parts = weights.T * marks  # (S, U)
    positions = best_first(parts.sum(0), generator, budget)
    bought = parts[:, positions]
    best = bought.max(0)
    by = [ballot.names[s] if value > 0 else NOBODY for value, s in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    return _batch(ballot, positions, by, weights[positions].mean(0))


def sample_shares(weights: Float[Tensor, "U S"], ballot: Ballot, budget: int, votes: float, generator: torch.Generator) -> Batch:
    """Let every strategy buy a share of the batch, each candidate with its own weights over strategies.

    The same weights and marks as `sample_mix`, but the batch does not go to the highest sums, where the heaviest strategy takes
    all: a strategy's share is the mean weight of the candidates it marked, and it buys those with the highest weight, graded by
    its own order: w_s(x) (1 - rank_s(x) / m). Remainders of seats are drawn (`draw_seats`), so that a small batch does not always
    go to the same strategies.

    Args:
        weights: rows sum to one.
        ballot: the strategies' wishes.
        budget: B.
        votes: r >= 1.
        generator: for the remainders.
    """
    budget = min(budget, len(ballot.round))
    count = mark_count(votes, budget, len(ballot.round))
    wishes = torch.stack([ballot.wish(s, count) for s in range(weights.shape[1])])  # (S, m)
    given = weights.gather(0, wishes.T).T
    shares = given.mean(1) / given.mean(1).sum()
    grade = 1 - torch.arange(count, device=weights.device) / count
    order = wishes.gather(1, torch.sort(given * grade, dim=1, descending=True, stable=True).indices)
    taken, by = _turns(draw_seats(shares, budget, generator), shares, order.tolist())
    return _batch(ballot, taken, [ballot.names[s] for s in by], shares)


def sample_draw(mass: Float[Tensor, "U S"], ballot: Ballot, budget: int, generator: torch.Generator) -> Batch:
    """Draw candidates one after the other in proportion to the mass that all strategies put on them, without replacement.

    Candidates without mass come last, uniformly. No strategy runs: the masses say everything. An exponential race gives the
    law of drawing one by one (Efraimidis & Spirakis 2006).

    Args:
        mass: at least 0; any scale.
        ballot: names the strategies.
        budget: B.
        generator: of the race.
    """
    budget, mass = min(budget, len(ballot.round)), mass.double()
    total = mass.sum(1)
    lots = torch.empty_like(total).exponential_(generator=generator)
    positions = best_first(torch.where(total > 0, total.log() - lots.log(), -torch.inf), generator, budget)
    won, drawn = mass[positions], total[positions]
    left = (total.sum() - drawn.cumsum(0) + drawn).clamp(min=1e-300)  # before each slot
    others = len(total) - torch.arange(budget, device=total.device)
    held = mass.sum(0) - won.cumsum(0) + won  # (B, S)
    advice = torch.where(held > 0, won / held.clamp(min=1e-300), 0).clamp(max=1)
    by = [ballot.names[s] if value > 0 else NOBODY for s, value in zip(won.argmax(1).tolist(), drawn.tolist(), strict=True)]
    shares = mass.sum(0) / mass.sum() if bool(mass.sum() > 0) else torch.full_like(mass[0], 1 / mass.shape[1])
    batch = _batch(ballot, positions, by, shares.float())
    propensity = torch.where(drawn > 0, drawn / left, 1 / others).clamp(max=1)
    return batch._replace(propensity=propensity.float(), advice=advice.T.float())


def _batch(ballot: Ballot, positions: Sequence[int] | Int[Tensor, " B"], by: list[str], weights: Tensor) -> Batch:
    device, count = ballot.round.device, len(positions)
    if not isinstance(positions, Tensor):
        positions = torch.tensor(positions, dtype=torch.int64, device=device)
    advice = torch.zeros(len(weights), count, device=device)
    return Batch(positions, tuple(by), torch.ones(count, device=device), weights, advice)
