"""Nets of torchvision by name."""

import functools
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alenv.model import TaskModel, Tune, solver_of
from alenv.vision import torchvision_body

STAGES = 4  # feature maps that are handed out, where a net does not say which


class _Body(nn.Module):
    """A net without its head, that also hands out what its stages computed."""

    def __init__(self, net: nn.Module, side: int | None) -> None:
        super().__init__()
        self.net, self.side = net, side

    def forward(self, x: Float[Tensor, "B channels h w"]) -> Float[Tensor, "B D"]:
        x = x.expand(-1, 3, -1, -1)
        if self.side is not None and x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        return self.net(x)

    def stages(self, x: Tensor) -> tuple[list[Tensor], Float[Tensor, "B D"]]:
        maps: list[Tensor] = []
        hooks = [stage.register_forward_hook(functools.partial(_note, maps)) for stage in self._stages()]
        try:
            h = self(x)
        finally:
            for hook in hooks:
                hook.remove()
        return maps or [h], h

    def _stages(self) -> list[nn.Module]:
        parts = [m for name, m in self.net.named_children() if name.startswith("layer")]  # residual nets
        if not parts:
            parts = next((list(m) for m in self.net.modules() if isinstance(m, nn.Sequential) and len(m) >= STAGES), [])
        count = min(STAGES, len(parts))
        return [parts[(i + 1) * len(parts) // count - 1] for i in range(count)]


def _note(maps: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    del module, inputs
    maps.append(output[:, 0] if output.dim() == 3 else output.movedim(-1, 1) if _channels_last(output) else output)


def _channels_last(output: Tensor) -> bool:
    """Whether a map is (B, h, w, channels), as Swin's are."""
    return output.dim() == 4 and output.shape[1] == output.shape[2] != output.shape[3]


def torchvision(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0, name: str = "resnet18",
    weights: str | None = None, tune: Tune = "all", dropout: float = 0.3, side: int | None = None, download: bool = False,
) -> TaskModel:  # fmt: skip
    """Return a net of torchvision with a new head; grey images become three equal channels.

    Inputs are normalised by the data set's own moments, trained weights or not.

    Args:
        input_shape: (channels, height, width).
        num_outputs: C.
        mean: see `alenv.task.Source`.
        std: see `alenv.task.Source`.
        name: of the net, as `torchvision.models.get_model` knows it.
        weights: None for random ones; a file of a state dict; or a name of torchvision's weights ("DEFAULT").
        tune: "all", "probe" (the head first, then everything) or "head" (the body stays as it is), see `alenv.model.Tune`.
        dropout: in front of the head.
        side: images are resized to side x side pixels; None leaves them.
        download: fetch named weights if they are not in torch's cache.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ValueError(
            f"net=torchvision expected images (1 or 3 channels, height, width), got inputs of shape {tuple(input_shape)}; "
            "use net=mlp"
        )
    net, width = torchvision_body(name, weights, download)
    return TaskModel(
        _Body(net, side), width, num_outputs, mean=mean, std=std, dropout=0.0 if tune == "head" else dropout,
        solver=solver_of(tune),
        companion=lambda outputs: torchvision(
            input_shape, outputs, mean, std, name, weights, "all" if tune == "head" else tune, dropout, side, download
        ),
    )  # fmt: skip
