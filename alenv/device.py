"""Devices: which one is meant, and what it can do."""

import torch


def pick_device(device: str | torch.device) -> torch.device:
    """Return the torch device that `device` names; "auto" is CUDA where there is one.

    Raises:
        ValueError: it is not a device of this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected device=auto, cpu, cuda or cuda:N, got '{device}'") from error
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"device={device}: this machine has {torch.cuda.device_count()} CUDA devices; use device=cpu or device=auto"
        )
    try:
        torch.empty(1, device=chosen).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch knows more devices than it was built for
        raise ValueError(f"device={device} does not work on this machine; use device=cpu or device=auto") from error
    return chosen


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware (emulated support is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(bool(getattr(torch.cpu, flag, bool)()) for flag in flags)
