"""CSI (Tack et al., "CSI: Novelty Detection via Contrastive Learning", NeurIPS 2020, arXiv 2007.08176)."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Num
from torch import Tensor

from alenv.encoder import Unlabeled
from alenv.encoders.simclr import SimCLR

SHIFTS = 4


class CSI(SimCLR):
    """SimCLR in which rotated images are other images, and a classifier of the rotation is trained beside it.

    Features are (N, 4, F): one view of each example per rotation by 0, 90, 180 and 270 degrees.

    Images that are not square are mirrored across, down and both ways instead. For inputs that are no images the paper has no
    shift; here their entries are reordered by three fixed random permutations (in the spirit of Bergman & Hoshen, ICLR 2020).
    Deviations as in `SimCLR`; features are of the example itself, not a mean over ten augmented copies.

    Args:
        epochs: passes over the pool.
        batch_size: examples a step; each counts eight times, in two views of four rotations.
        lr: peak learning rate.
        weight_decay: of AdamW.
        temperature: of the similarities.
        projection: width of the projection.
        layer: what the features are: "projection" or "body", in front of it.
        crop: smallest share of an image's area that a crop keeps.
        corruption: share of entries replaced, of inputs that are not images.
    """

    def __init__(
        self, epochs: int = 200, batch_size: int = 128, lr: float = 1e-3, weight_decay: float = 1e-4, temperature: float = 0.5,
        projection: int = 128, layer: Literal["projection", "body"] = "projection", crop: float = 0.2, corruption: float = 0.6,
    ) -> None:  # fmt: skip
        super().__init__(epochs, batch_size, lr, weight_decay, temperature, projection, layer, crop, corruption)

    def shifts(self, pool: Unlabeled) -> list[Callable[[Tensor], Tensor]]:
        """Return the identity and three transformations that make other examples."""
        shape = pool.inputs.shape[1:]
        if len(shape) == 3 and shape[1] == shape[2]:
            return [functools.partial(torch.rot90, k=k, dims=(2, 3)) for k in range(SHIFTS)]
        if len(shape) == 3:
            return [functools.partial(torch.flip, dims=dims) for dims in ((), (2,), (3,), (2, 3))]
        generator, size = pool.streams("encoder/shifts"), shape.numel()
        orders = [torch.randperm(size, generator=generator, device=pool.inputs.device) for _ in range(SHIFTS - 1)]
        return [_same, *(functools.partial(_reordered, order=order) for order in orders)]


def _same(x: Num[Tensor, "B ..."]) -> Num[Tensor, "B ..."]:
    return x


def _reordered(x: Num[Tensor, "B ..."], order: Tensor) -> Num[Tensor, "B ..."]:
    return x.flatten(1)[:, order].view(x.shape)
