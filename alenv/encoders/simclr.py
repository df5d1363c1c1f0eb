"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv 2002.05709).

Tables: SCARF's random corruption (Bahri et al., ICLR 2022, arXiv 2106.15147) in place of image augmentation.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from alenv.encoder import Encoder, Unlabeled, blocks, checked, steps_of
from alenv.model import TaskModel

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue


class SimCLR(Encoder):
    """Features of a net that tells whether two augmented views show the same example.

    A net of the task's family and a projection (two linear layers, a ReLU between) are trained on the whole pool with NT-Xent:
    each view must find its twin among the 2B of a batch. Images are cropped, flipped where the data set allows it, and
    changed in brightness, contrast, saturation and, one in five, to grey; of anything else, one of the views has entries
    replaced by the same entry of random other examples.

    Deviations: AdamW with a cosine decay instead of LARS, which is for batches of thousands; no blur and no change of hue.

    Args:
        epochs: passes over the pool.
        batch_size: examples a step.
        lr: peak learning rate.
        weight_decay: of AdamW.
        temperature: of the similarities.
        projection: width of the projection.
        layer: what the features are: "projection" (what CCAL and MQ-Net compare) or "body", in front of it.
        crop: smallest share of an image's area that a crop keeps.
        corruption: share of entries replaced, of inputs that are not images.
    """

    def __init__(
        self, epochs: int = 200, batch_size: int = 256, lr: float = 1e-3, weight_decay: float = 1e-4, temperature: float = 0.5,
        projection: int = 128, layer: Literal["projection", "body"] = "projection", crop: float = 0.2, corruption: float = 0.6,
    ) -> None:  # fmt: skip
        if layer not in ("projection", "body"):
            raise ValueError(f"expected layer=projection or body, got '{layer}'")
        if not (0 < crop <= 1 and 0 <= corruption <= 1):
            raise ValueError(f"expected crop in (0, 1] and corruption in [0, 1], got {crop} and {corruption}")
        self.epochs, self.batch_size, self.lr, self.weight_decay = epochs, batch_size, lr, weight_decay
        self.temperature, self.projection, self.layer = temperature, projection, layer
        self.crop, self.corruption = crop, corruption

    def encode(self, pool: Unlabeled) -> Float[Tensor, "N ..."]:
        """Train the net on `pool` and return its features."""
        with pool.streams.scoped("encoder/init"):
            net = ContrastiveNet(pool.net(), self.projection, len(self.shifts(pool))).to(pool.trainer.device)
        with torch.enable_grad(), pool.trainer.threads(net.task):
            self._fit(net, pool)
        return self._features(net.eval(), pool)

    def shifts(self, pool: Unlabeled) -> list[Callable[[Tensor], Tensor]]:
        """Return the transformations whose results count as other examples; here none but the identity."""
        del pool
        return [lambda x: x]

    def _fit(self, net: "ContrastiveNet", pool: Unlabeled) -> None:
        per_epoch, steps = steps_of(pool, self.batch_size, self.epochs)
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        order, noise = pool.streams("encoder/order"), pool.streams("encoder/views")
        shifts = self.shifts(pool)
        net.train()
        for _ in range(self.epochs):
            shuffled = torch.randperm(len(pool), generator=order, device=pool.inputs.device)
            for rows in shuffled.tensor_split(per_epoch):
                with pool.trainer.autocast(pool.inputs):
                    loss = self._loss(net, pool, pool.inputs[rows], shifts, noise)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()

    def _loss(
        self, net: "ContrastiveNet", pool: Unlabeled, x: Tensor, shifts: list[Callable[[Tensor], Tensor]], noise: torch.Generator
    ) -> Tensor:
        x = net.task.normalized(x)
        shifted = torch.cat([shift(x) for shift in shifts])  # (K B, ...)
        h, z = net(torch.cat(self._views(shifted, pool, noise)))
        loss = nt_xent(z.float(), self.temperature)
        if len(shifts) > 1:
            which = torch.arange(len(shifts), device=x.device).repeat_interleave(len(x)).repeat(2)
            loss = loss + F.cross_entropy(net.shift(h).float(), which)
        return loss

    def _views(self, x: Float[Tensor, "B ..."], pool: Unlabeled, noise: torch.Generator) -> list[Tensor]:
        if x.dim() == 4:
            flip = pool.augmentation is not None and pool.augmentation.flip
            return [image_view(x, noise, self.crop, flip) for _ in range(2)]
        return [x, corrupted(x, noise, self.corruption)]

    @torch.no_grad()
    def _features(self, net: "ContrastiveNet", pool: Unlabeled) -> Float[Tensor, "N ..."]:
        shifts, found = self.shifts(pool), []
        for x in blocks(pool, len(shifts)):
            with pool.trainer.autocast(x):
                inputs = net.task.normalized(x)
                h, z = net(torch.cat([shift(inputs) for shift in shifts]))
            values = (z if self.layer == "projection" else h).float()
            found.append(values.unflatten(0, (len(shifts), len(x))).transpose(0, 1))  # (B, K, F)
        whole = torch.cat(found)
        return checked(whole[:, 0] if len(shifts) == 1 else whole, type(self).__name__)


class ContrastiveNet(nn.Module):
    """The body of a task model, a projection, and a classifier of `shifts` transformations."""

    def __init__(self, task: TaskModel, projection: int, shifts: int) -> None:
        super().__init__()
        self.task = task
        width = task.feature_dim
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))
        self.shift = nn.Linear(width, shifts)

    def forward(self, x: Float[Tensor, "B ..."]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P"]]:
        """Return features and projections of normalised inputs."""
        h = self.task.body(x)
        return h, self.project(h)


def nt_xent(z: Float[Tensor, "n P"], temperature: float) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of finding row i's twin, i + n/2 modulo n, by cosine similarity among all other rows."""
    z = F.normalize(z, dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    twins = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(similarity, twins)


def image_view(x: Float[Tensor, "B C H W"], generator: torch.Generator, crop: float, flip: bool) -> Float[Tensor, "B C H W"]:
    """Return a random crop of each image, scaled back to its size, with other colours."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), generator=generator, device=x.device)

    area, aspect = between(crop, 1), torch.exp(between(-0.28768, 0.28768))  # log(4/3)
    width, height = ((area * a).sqrt().clamp(max=1) for a in (aspect, 1 / aspect))
    mirror = torch.where((between(0, 1) < 0.5) & flip, -1.0, 1.0)
    zero = torch.zeros_like(area)
    across = torch.stack([width * mirror, zero, (1 - width) * between(-1, 1)], 1)
    down = torch.stack([zero, height, (1 - height) * between(-1, 1)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if x.shape[1] == len(GREY):
        grey = (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
        kept = torch.where(between(0, 1) < 0.2, 0.0, between(0.6, 1.4))[:, None, None, None]
        x = grey + kept * (x - grey)
    middle = x.mean((1, 2, 3), keepdim=True)
    return middle + between(0.6, 1.4)[:, None, None, None] * (x - middle) + 0.4 * between(-1, 1)[:, None, None, None]


def corrupted(x: Num[Tensor, "B ..."], generator: torch.Generator, share: float) -> Num[Tensor, "B ..."]:
    """Return `x` with about `share` of its entries replaced by the same entry of other rows, each of its own random row."""
    flat = x.flatten(1)
    replaced = torch.rand(flat.shape, generator=generator, device=x.device) < share
    donors = torch.randint(len(flat), flat.shape, generator=generator, device=x.device)
    return torch.where(replaced, flat.gather(0, donors), flat).view(x.shape)
