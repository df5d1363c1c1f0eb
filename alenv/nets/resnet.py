"""Residual nets (He, Zhang, Ren & Sun, CVPR 2016), torchvision's, with the stem that small images need."""

from collections.abc import Sequence

from torch import Tensor, nn

from alenv.model import TaskModel
from alenv.vision import torchvision_module

LARGE = 64  # side from which the stem of ImageNet is used: 7 x 7 with stride 2, and pooling


class _Stages(nn.Module):
    """A torchvision ResNet without its head, that also hands out its four stages."""

    def __init__(self, channels: int, side: int, depth: int) -> None:
        super().__init__()
        net = getattr(torchvision_module("models"), f"resnet{depth}")(weights=None)
        width = net.conv1.out_channels
        if side < LARGE:
            conv: nn.Module = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.stem = nn.Sequential(conv, net.bn1, net.relu)
        else:
            conv = net.conv1 if channels == 3 else nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(conv, net.bn1, net.relu, net.maxpool)
        self.layers = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        self.width = net.fc.in_features

    def stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x, maps = self.stem(x), []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps, x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[1]


def resnet(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0,
    depth: int = 18, dropout: float = 0.3,
) -> TaskModel:  # fmt: skip
    """Return a ResNet of `depth` 18, 34, 50, 101 or 152, randomly initialised, with dropout in front of its head.

    Images below 64 pixels get the stem that is usual for CIFAR: one 3 x 3 convolution, no pooling.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"net=resnet{depth} expected images (channels, height, width), got inputs of shape {tuple(input_shape)}; use net=mlp"
        )
    if depth not in (18, 34, 50, 101, 152):
        raise ValueError(f"expected depth 18, 34, 50, 101 or 152, got {depth}")
    body = _Stages(input_shape[0], min(input_shape[1:]), depth)
    return TaskModel(
        body, body.width, num_outputs, mean=mean, std=std, dropout=dropout,
        companion=lambda outputs: resnet(input_shape, outputs, mean, std, depth, dropout),
    )  # fmt: skip
