"""A small convolutional net for small images."""

from collections.abc import Sequence

from torch import Tensor, nn

from alenv.model import TaskModel


class _Blocks(nn.Module):
    """Two convolutions and a halving per block while the image allows it; global average pooling at the end."""

    def __init__(self, channels: int, side: int, widths: Sequence[int]) -> None:
        super().__init__()
        blocks = []
        for width in widths:
            layers: list[nn.Module] = []
            for a in (channels, width):
                layers += [nn.Conv2d(a, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            blocks.append(nn.Sequential(*layers))
            channels = width
        self.blocks = nn.ModuleList(blocks)

    def stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps, x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[1]


def small_cnn(
    input_shape: Sequence[int], num_outputs: int, mean: Tensor | float = 0.0, std: Tensor | float = 1.0,
    widths: Sequence[int] = (32, 64, 128), dropout: float = 0.3,
) -> TaskModel:  # fmt: skip
    """Return one block of two 3x3 convolutions per width, global average pooling, dropout and a linear head."""
    if len(input_shape) != 3:
        raise ValueError(
            f"net=small_cnn expected images (channels, height, width), got inputs of shape {tuple(input_shape)}; use net=mlp"
        )
    body = _Blocks(input_shape[0], min(input_shape[1:]), widths)
    return TaskModel(
        body, widths[-1], num_outputs, mean=mean, std=std, dropout=dropout,
        companion=lambda outputs: small_cnn(input_shape, outputs, mean, std, widths, dropout),
    )  # fmt: skip
