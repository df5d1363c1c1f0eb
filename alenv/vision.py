"""torchvision, imported only when something needs it."""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_module(name: str) -> Any:
    """Return `torchvision.<name>`.

    Raises:
        ImportError: torchvision is missing or was built for another torch; the message says what to install.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    # a mismatched pair fails with "operator torchvision::nms does not exist"
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ImportError(
            f"torchvision does not work with torch {torch.__version__} ({error}); install the matching pair: "
            "pip install --force-reinstall torch torchvision"
        ) from error


def imagenet_images(x: Num[Tensor, "b channels h w"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Return stored images (bytes, or floats in 0..1; grey or RGB) as ImageNet's nets take them, resized by bicubic splines."""
    if x.is_floating_point() and (float(x.min()) < 0 or float(x.max()) > 1):
        raise ValueError(
            f"expected images as bytes, or as floats in 0..1, got floats in {float(x.min()):g}..{float(x.max()):g}; rescale them"
        )
    values = x if x.is_floating_point() else x.float() / 255
    values = values.expand(-1, 3, -1, -1)
    if values.shape[2:] != (side, side):
        values = F.interpolate(values, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, std = (values.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (values - mean) / std


def torchvision_body(name: str, weights: str | None = None, download: bool = False) -> tuple[nn.Module, int]:
    """Return a net of torchvision that ends in front of its last linear layer, and the width there.

    Args:
        name: as `torchvision.models.get_model` knows it.
        weights: None for random ones; a .safetensors file of a state dict; or one of
            torchvision's names ("DEFAULT").
        download: fetch named weights if they are not in torch's cache.

    Raises:
        ValueError: no such net or weights, or they do not fit each other.
    """
    models = torchvision_module("models")
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, 3, 0.5)
        raise ValueError(f"torchvision has no net '{name}'; did you mean {' or '.join(close) or 'resnet18'}?")
    net = models.get_model(name, weights=None)
    linear = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear or list(net.modules())[-1] is not linear[-1][1]:
        raise ValueError(f"{name} does not end in a linear layer; choose another net")
    path, head = linear[-1]
    net.set_submodule(path, nn.Identity())
    if weights is not None:
        state = _state_of(Path(weights)) if Path(weights).is_file() else _named_state(models, name, weights, download)
        found = net.load_state_dict(state, strict=False)
        unknown = [key for key in found.unexpected_keys if not key.startswith(f"{path}.")]
        if found.missing_keys or unknown:
            raise ValueError(
                f"{weights} holds no weights of {name}: missing {found.missing_keys[:3]}, unknown {unknown[:3]}; "
                "name the net they belong to"
            )
    return net, head.in_features


def _state_of(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.absolute()} cannot be read as safetensors ({error}); pickles are not opened: save the state dict with "
            "safetensors.torch.save_file"
        ) from error


def _named_state(models: Any, name: str, weights: str, download: bool) -> Mapping[str, Tensor]:
    known = models.get_model_weights(name)
    names = ["DEFAULT", *known.__members__]
    if weights not in names:
        raise ValueError(f"no file '{weights}', nor weights of that name for {name}; there are: {', '.join(names)}")
    chosen = getattr(known, weights)
    file = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
    if not file.exists() and not download:
        raise ValueError(f"weights {weights} of {name} are not on this machine ({file}); set download=true to fetch them once")
    return chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
