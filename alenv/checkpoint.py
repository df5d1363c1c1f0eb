"""Nested state -> one file, without pickle: tensors as safetensors, everything else as JSON in its header."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from alenv.durable import write_atomically

TENSOR = "__tensor__"


def save_state(path: Path, state: dict[str, Any], sync: bool = True) -> None:
    """Replace `path` by `state`: nested dicts and lists of tensors, numbers, strings, booleans and None. Atomic."""
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_packed(state, "", tensors))
    tensors = tensors or {"": torch.zeros(0)}  # the format wants at least one
    write_atomically(path, save(tensors, {"state": header}), sync)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `save_state` wrote, tensors on `device`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            header = json.loads(file.metadata()["state"])
            return _unpacked(header, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it to repeat the rounds since the start, bought labels are kept"
        ) from error


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{name}#{len(tensors)}"  # keys may hold slashes themselves: {"a/b": ...} beside {"a": {"b": ...}}
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if isinstance(value, dict):
        return {str(key): _packed(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value[TENSOR]] if TENSOR in value else {key: _unpacked(item, tensors) for key, item in value.items()}
    return [_unpacked(item, tensors) for item in value] if isinstance(value, list) else value
