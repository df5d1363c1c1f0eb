"""Plain arrays of somebody else's model, checked before a round is made of them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

PER_CANDIDATE = {  # name -> axis of the candidates
    "probs": 0, "logits": 0, "embeddings": 0, "mc_probs": 1, "inputs": 0, "given_probs": 0, "top_two": 1,
}  # fmt: skip
AXES = {"probs": 2, "logits": 2, "embeddings": 2, "mc_probs": 3, "labeled_embeddings": 2, "discarded_embeddings": 2}


@runtime_checkable
class Rows(Protocol):
    """Features of a pool: `rows[indices]` are the (k, F), or (k, V, F) for V views, of k pool indices. A tensor is one."""

    def __getitem__(self, indices: Any, /) -> Any:
        """Return the features at pool `indices`."""
        ...


def floats(name: str, value: Any) -> Tensor:
    """Return `value` as a float tensor without a graph; integers become float32. NaN raises ValueError naming the array."""
    tensor = torch.as_tensor(value).detach()
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    if bool(tensor.isnan().any()):
        raise ValueError(f"{name} holds NaN; mend or drop those rows first")
    return tensor


def check_arrays(given: Mapping[str, Any], features: Mapping[str, Tensor], labels: Tensor | None) -> tuple[int, torch.device]:
    """Return U and the device; raise where shapes disagree."""
    for name, axes in AXES.items():
        if name in given and given[name].dim() != axes:
            raise ValueError(f"expected {name} with {axes} axes, got shape {tuple(given[name].shape)}")
    rows = {name: (value.shape[PER_CANDIDATE[name]], value.device) for name, value in given.items() if name in PER_CANDIDATE}
    rows |= {f"features {name}": (len(value), value.device) for name, value in features.items()}
    rows |= {f"aux {name}": (len(value), value.device) for name, value in given["aux"].items()}
    if not rows:
        raise ValueError(
            "expected at least one array about the candidates (probs, logits, embeddings, mc_probs, features), got none"
        )
    _agree("candidates in every array", {name: size for name, (size, _) in rows.items()})
    widths = {
        name: given[name].shape[-1] for name in ("embeddings", "labeled_embeddings", "discarded_embeddings") if name in given
    }
    _agree("features in every array", widths | ({"head": given["head"][0].shape[1]} if "head" in given else {}))
    for name in ("probs", "mc_probs"):
        if name in given and (bool((given[name] < 0).any()) or bool(((given[name].sum(-1) - 1).abs() > 1e-3).any())):
            raise ValueError(
                f"expected rows of {name} that are non-negative and sum to one; for unnormalised scores pass logits="
            )
    if "labeled_embeddings" in given and labels is not None and len(given["labeled_embeddings"]) != len(labels):
        raise ValueError(
            f"expected one label per labelled embedding ({len(given['labeled_embeddings'])}), got {len(labels)} labels"
        )
    return next(iter(rows.values()))


def count_classes(given: Mapping[str, Any], labels: Tensor | None, said: int | None) -> int:
    """Return C: `said`, or what the arrays have; raise where they disagree or a label does not fit."""
    widths = {name: int(given[name].shape[-1]) for name in ("probs", "logits", "mc_probs") if name in given}
    widths |= {"head": len(given["head"][0])} if "head" in given else {}
    widths |= {} if said is None else {"num_classes": said}
    _agree("classes in every array", widths)
    highest = int(labels.max()) + 1 if labels is not None and len(labels) else 0
    classes = next(iter(widths.values()), highest)
    if highest > classes or (labels is not None and len(labels) and int(labels.min()) < 0):
        raise ValueError(f"expected labels in 0..{classes - 1}, got {int(labels.min())}..{highest - 1}")  # type: ignore[union-attr]
    return classes


def _agree(what: str, sizes: Mapping[str, int]) -> None:
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected one number of {what}, got {dict(sizes)}")
