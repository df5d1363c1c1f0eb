"""Nets of torchvision as frozen encoders."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alenv.embedding import Frozen, Reads, digest_of
from alenv.streams import Streams
from alenv.vision import torchvision_body


class TorchVision(Frozen):
    """What a net of torchvision hands to its last linear layer, for images of any size.

    Args:
        model: name of the net, as `torchvision.models.get_model` knows it.
        weights: file of a state dict (.safetensors, .pth), or a name of torchvision's weights ("DEFAULT").
        download: fetch weights given by name if they are not in torch's cache.
        side: images are resized to side x side pixels.
        batch_size: images per forward pass.
    """

    reads: Reads = "images"
    telling = ("download", "weights")

    def __init__(
        self, model: str = "resnet18", weights: str | None = None, download: bool = False, side: int = 224, batch_size: int = 64
    ) -> None:
        self.model, self.weights, self.download, self.side, self.batch_size = model, weights, download, side, batch_size
        self._net: nn.Module | None = None

    def weights_digest(self) -> str:
        """Return a hash of weights and buffers."""
        return digest_of(self._built())

    def load(self, device: torch.device) -> Callable[[Any], Tensor]:
        """Return the net without its head."""
        return self._built().to(device)

    def _built(self) -> nn.Module:
        if self._net is None:
            if self.weights is None:
                raise ValueError(
                    "encoder torchvision: expected weights=<file of a state dict> or weights=DEFAULT, got none; "
                    "untrained nets are no encoders"
                )
            with Streams(0).scoped("encoder/torchvision"):  # making a net draws random weights
                net, _ = torchvision_body(self.model, self.weights, self.download)
            self._net = net.eval().requires_grad_(False)
        return self._net
