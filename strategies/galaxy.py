"""GALAXY (Zhang, Katz-Samuels & Nowak, "GALAXY: Graph-based Active Learning at the Extreme", ICML 2022, arXiv 2202.01402)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.round import Round
from alenv.strategy import Strategy


class Galaxy(Strategy):
    """Bisect, class by class, the shortest run of unlabelled examples between one of that class and one of another.

    For each class k everybody, labelled or not, is lined up by p_k - max p, those predicted k by confidence. Classes take turns
    in random order. A turn buys the middle of the shortest unlabelled run whose two labelled ends differ in being of class k.
    Where no such run is left, it buys the example nearest to a place where two labelled neighbours differ, which is what the
    paper's growing neighbourhood comes to. Where there is no such place either, it buys by lot, as equal choices do.
    O(C N log N + B (L + B) log(L + B)), memory N C, for N = L + U.

    The paper has each answer before it bisects again. Within a batch there are none, so what is bought counts as what the
    model predicts until the next round; with B = 1 the two coincide.

    Args:
        target: number of the one class that takes all turns, as in TAILOR's arms: O(N log N) then. None: all classes do.
    """

    family = "imbalance"
    needs = frozenset({"probs", "labels", "labeled_embeddings", "head"})

    def __init__(self, target: int | None = None) -> None:
        if target is not None and target < 0:
            raise ValueError(f"galaxy: expected the number of a class, got {target}")
        self.target = target

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return positions in the order of the turns."""
        if self.target is not None and self.target >= round.num_classes:
            raise ValueError(f"galaxy: expected target in 0..{round.num_classes - 1}, got {self.target}")
        generator, device = round.generator("galaxy"), round.device
        weight, bias = round.head
        probs = torch.cat([round.probs, (round.labeled_embeddings @ weight.T + bias).softmax(1)])
        belief = torch.cat([round.probs.argmax(1), round.labels])
        lot = torch.randperm(len(probs), generator=generator, device=device)
        classes = torch.arange(round.num_classes, device=device) if self.target is None else lot.new_tensor([self.target])
        lines = _lines(probs, lot, classes)  # (K, N): who stands where
        places = torch.empty_like(lines).scatter_(1, lines, torch.arange(len(probs), device=device).expand_as(lines))
        turns = torch.randperm(len(classes), generator=generator, device=device).tolist()
        lots = torch.rand(budget, generator=generator, device=device)
        chance = iter(lot[lot < len(round)].tolist())
        known = torch.arange(len(round), len(probs) + budget, device=device)  # labelled, then bought
        picks: dict[int, int] = {}  # in the order of turns
        for turn in range(budget):
            k, count = turns[turn % len(turns)], len(round.labels) + turn
            along = places[k, known[:count]].sort().values
            found = _place(along, belief[lines[k, along]] == classes[k], len(probs), lots[turn])
            pick = next(i for i in chance if i not in picks) if found is None else int(lines[k, found])
            known[count] = pick
            picks[pick] = turn
        return torch.tensor(list(picks), device=device)


def _lines(probs: Float[Tensor, "N C"], lot: Int[Tensor, " N"], classes: Int[Tensor, " K"]) -> Int[Tensor, "K N"]:
    """Return, for each of some classes, everybody by rising p_k - max p, those predicted k last and by rising confidence.

    Ties fall by lot.
    """
    confidence, probs = probs.amax(1, keepdim=True), probs[:, classes]
    margin = torch.where(probs == confidence, confidence, probs - confidence)  # negative, but for those predicted k
    return lot[margin[lot].T.sort(dim=1, stable=True).indices]


def _place(along: Int[Tensor, " m"], own: Bool[Tensor, " m"], size: int, lot: Float[Tensor, ""]) -> int | None:
    """Return the place in line to buy next, or None if the labels along it do not differ.

    Args:
        along: places of those labelled, rising.
        own: which of them are of the line's class.
        size: length of the line.
        lot: uniform in [0, 1), chooses among equals.
    """
    low, high = along[:-1], along[1:]
    differ, gap = own[1:] != own[:-1], high - low
    inside = differ & (gap > 1)
    if bool(inside.any()):
        i = _least(gap.masked_fill(~inside, size), lot)
        half = (gap[i] + 1) // 2  # steps from the end of another class
        return int(high[i] - half if own[i] else low[i] + half)
    head = torch.ones_like(own)  # is first of a block of labelled neighbours
    head[1:] = gap > 1
    block = head.cumsum(0) - 1
    first, last = along[head], along[head.roll(-1)]
    before, after = first[block[:-1]] - 1, last[block[1:]] + 1  # nearest unlabelled on either side of each pair
    way = torch.cat([(high - before).masked_fill(before < 0, size), (after - low).masked_fill(after >= size, size)])
    way = way.masked_fill(~differ.repeat(2), size)
    if not len(way) or not bool((way < size).any()):
        return None
    return int(torch.cat([before, after])[_least(way, lot)])


def _least(values: Int[Tensor, " m"], lot: Float[Tensor, ""]) -> int:
    """Return the index of the least value, one of the equals by lot."""
    equals = torch.nonzero(values == values.min()).flatten()
    return int(equals[(lot * len(equals)).long()])
