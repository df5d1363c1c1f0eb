"""Per-sample augmentation on the device the images live on."""

import torch
import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor

from alenv.task import Augmentation


def augmented(images: Num[Tensor, "B C H W"], how: Augmentation, generator: torch.Generator) -> Num[Tensor, "B C H W"]:
    """Shift each image by its own draw of up to `how.pad` pixels (zeros move in) and flip it or not, dtype kept."""
    batch, _, height, width = images.shape
    device, pad = images.device, how.pad
    shifts = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) + shifts[0]  # (B, H)
    columns = torch.arange(width, device=device).expand(batch, -1)
    if how.flip:
        flip = torch.rand(batch, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    columns = columns + shifts[1]
    padded = F.pad(images, (pad, pad, pad, pad))
    which = torch.arange(batch, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
