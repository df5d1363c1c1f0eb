"""CCAL (Du et al., "Contrastive Coding for Active Learning under Class Distribution Mismatch", ICCV 2021)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.features import Features
from alenv.geometry import CHUNK_ELEMENTS, products
from alenv.ops import largest
from alenv.round import Round
from alenv.strategy import Strategy, best_first


class CCAL(Strategy):
    """Buy, for each class, what is semantically near labelled examples but distinct from those of that class.

    With cosines of contrastive features, and u the largest one with a labelled example, scaled to [0, 1] over the candidates:
    S = tanh(sharpness (u - threshold) / 2). With c1 >= c2 the two largest with labelled examples a1, a2 of a class:
    D = 2 c1 - c2 + cos(a1, a2), averaged over views (CSI's rotations) and scaled alike. A class buys its ceil(B / classes)
    highest S + 1 - D. O(U L F), memory one block of cosines and one number per candidate and class.

    The best of all classes come first, then the second ones. Classes without a label buy nothing; what a class cannot fill with
    candidates of its own (`filter`) goes to the highest scores left. A class of one labelled example has c2 = cos(a1, a2) = 0;
    the authors' code stops there.

    Args:
        semantic: name of the provider of features that tell what an example shows (SimCLR in the paper).
        distinctive: name of the provider of features that tell examples apart from their rotations (CSI in the paper).
        sharpness: k.
        threshold: t.
        filter: let a class buy only candidates whose semantically nearest labelled example is of that class, as the authors do.
    """

    family = "open-set"

    def __init__(
        self, semantic: str = "semantic", distinctive: str = "distinctive", sharpness: float = 100.0, threshold: float = 0.9,
        filter: bool = True,
    ) -> None:  # fmt: skip
        self.semantic, self.distinctive, self.sharpness, self.threshold = semantic, distinctive, sharpness, threshold
        self.filter = filter
        self.needs = frozenset({"labels", f"features:{semantic}", f"features:{distinctive}"})

    def select(self, round: Round, budget: int) -> Int[Tensor, " B"]:
        """Return the best of each class, then their second ones, and so on."""
        generator = round.generator("ccal")
        present = torch.unique(round.labels)
        scores, nearest = self.class_scores(round, present)
        left = torch.ones(len(round), dtype=torch.bool, device=round.device)
        quota = -(-budget // max(1, len(present)))
        picks, ranks = [], []
        for scored, label in zip(scores.unbind(1), present, strict=True):
            own = torch.nonzero(left & (nearest == label) if self.filter else left).flatten()
            chosen = own[best_first(scored[own], generator, min(quota, len(own)))]
            left[chosen] = False
            picks.append(chosen)
            ranks.append(scored[chosen] - 4.0 * torch.arange(len(chosen), device=round.device))  # scores lie in [-1, 2]
        first = torch.cat(picks)[best_first(torch.cat(ranks), generator)] if picks else left.new_zeros(0, dtype=torch.int64)
        others = torch.nonzero(left).flatten()
        best = scores[others].max(1).values if len(present) else torch.zeros(len(others), device=round.device)
        return torch.cat([first, others[best_first(best, generator)]])[:budget]

    def class_scores(self, round: Round, classes: Int[Tensor, " K"]) -> tuple[Float[Tensor, "U K"], Int[Tensor, " U"]]:
        """Return S + 1 - D for each of `classes`, and the class of the semantically nearest labelled example."""
        if len(round.labels) == 0:
            return torch.zeros(len(round), 0, device=round.device), torch.full((len(round),), -1, device=round.device)
        cosine, which = round.once(self, self._nearest)
        likeness = torch.tanh(self.sharpness * (_scaled(cosine) - self.threshold) / 2)
        own = [torch.nonzero(round.labels == label).flatten() for label in classes]
        views = zip(*_views(round.features(self.distinctive)), strict=True)
        typical = torch.stack([_typical(x, [anchors[rows] for rows in own]) for x, anchors in views]).mean(0)
        return (likeness + 1 - _scaled(typical)).T, round.labels[which]

    def purity(self, round: Round) -> Float[Tensor, " U"] | None:
        """Return the largest semantic cosine with a labelled example, of which S is an increasing function."""
        return round.once(self, self._nearest)[0] if len(round.labels) else None

    def _nearest(self, round: Round) -> tuple[Float[Tensor, " U"], Int[Tensor, " U"]]:
        """Return the semantic cosine with the nearest labelled example, and which one that is."""
        semantic = round.features(self.semantic)
        x, anchors = semantic.candidates, F.normalize(semantic.labeled, dim=1)
        blocks = x.split(max(1, CHUNK_ELEMENTS // len(anchors)))
        found = [largest(products(anchors, F.normalize(block, dim=1))) for block in blocks]
        return torch.cat([cosine for cosine, _ in found]), torch.cat([which for _, which in found])


def _views(features: Features) -> list[Float[Tensor, "V n F"]]:
    """Return features of candidates and of labelled examples, view by view."""
    parts = (features.candidates, features.labeled)
    return [part.unflatten(1, (features.views, -1)).transpose(0, 1) for part in parts]


def _typical(x: Float[Tensor, "U F"], anchors: Sequence[Float[Tensor, "M F"]]) -> Float[Tensor, "K U"]:
    """Return 2 c1 - c2 + cos(a1, a2) with the anchors of each of K classes; block by block, one product for all of them."""
    anchors = [F.normalize(each, dim=1) for each in anchors]
    together, between, sizes = torch.cat(anchors), [each @ each.T for each in anchors], [len(each) for each in anchors]
    found, rows = x.new_empty(len(anchors), len(x)), max(1, CHUNK_ELEMENTS // len(together))
    for block, some in zip(x.split(rows), found.split(rows, 1), strict=True):
        for cosines, gram, out in zip(products(together, F.normalize(block, dim=1)).split(sizes), between, some, strict=True):
            first, nearest = largest(cosines)
            out.copy_(2 * first)
            if len(gram) > 1:
                second, other = largest(cosines.scatter_(0, nearest.unsqueeze(0), -torch.inf))
                out += gram[nearest, other] - second
    return found


def _scaled(values: Float[Tensor, "*K n"]) -> Float[Tensor, "*K n"]:
    """Return each row scaled to [0, 1]; equal values become 0."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return (values - low) / torch.where(high > low, high - low, 1.0)
