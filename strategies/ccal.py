"""CCAL (Du et al., "Contrastive Coding for Active Learning under Class Distribution Mismatch", ICCV 2021)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from alenv.features import Features
from alenv.geometry import CHUNK_ELEMENTS
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
        mine, anchors = _views(round.features(self.distinctive))
        columns = []
        for label in classes:
            typical = [_typical(x, a) for x, a in zip(mine, anchors[:, round.labels == label], strict=True)]
            columns.append(likeness + 1 - _scaled(torch.stack(typical).mean(0)))
        return torch.stack(columns, 1), round.labels[which]

    def purity(self, round: Round) -> Float[Tensor, " U"] | None:
        """Return the largest semantic cosine with a labelled example, of which S is an increasing function."""
        return round.once(self, self._nearest)[0] if len(round.labels) else None

    def _nearest(self, round: Round) -> tuple[Float[Tensor, " U"], Int[Tensor, " U"]]:
        """Return the semantic cosine with the nearest labelled example, and which one that is."""
        semantic = round.features(self.semantic)
        cosine, which = _two_nearest(F.normalize(semantic.candidates, dim=1), F.normalize(semantic.labeled, dim=1))
        return cosine[:, 0], which[:, 0]


def _views(features: Features) -> list[Float[Tensor, "V n F"]]:
    """Return unit features of candidates and of labelled examples, view by view."""
    parts = (features.candidates, features.labeled)
    return [F.normalize(part.unflatten(1, (features.views, -1)), dim=2).transpose(0, 1) for part in parts]


def _typical(x: Float[Tensor, "U F"], anchors: Float[Tensor, "M F"]) -> Float[Tensor, " U"]:
    """Return 2 c1 - c2 + cos(a1, a2)."""
    cosine, which = _two_nearest(x, anchors)
    if len(anchors) < 2:
        return 2 * cosine[:, 0]
    between = (anchors[which[:, 0]] * anchors[which[:, 1]]).sum(1)
    return 2 * cosine[:, 0] - cosine[:, 1] + between


def _two_nearest(x: Float[Tensor, "U F"], anchors: Float[Tensor, "M F"]) -> tuple[Float[Tensor, "U k"], Int[Tensor, "U k"]]:
    """Return the two (or one) largest cosines of unit rows with `anchors`, and which anchors they are; block by block."""
    rows = max(1, CHUNK_ELEMENTS // max(1, len(anchors)))
    found = [(block @ anchors.T).topk(min(2, len(anchors))) for block in x.split(rows)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _scaled(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return values scaled to [0, 1]; equal ones become 0."""
    low, high = values.min(), values.max()
    return (values - low) / torch.where(high > low, high - low, 1.0)
