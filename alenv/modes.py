"""Ways to compute that a trainer can be asked for: deterministic algorithms, compiled passes."""

import contextlib
import copy
import os
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch

from alenv.model import TaskModel


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms only inside the block, if `wanted`; afterwards torch is as it was."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before it is first used
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    picks = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.backends.cudnn.benchmark = picks


class Compiled:
    """Nets with compiled bodies, one per campaign: the same module every round, its weights reset in place.

    A compiled pass belongs to the module it was made of, so a fresh module would be compiled again in every round.

    Args:
        backend: of `torch.compile`.

    Raises:
        ValueError: torch has no such backend.
    """

    def __init__(self, backend: str) -> None:
        known = torch.compiler.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"expected trainer.compile=null or a backend of torch.compile ({', '.join(known)}), got '{backend}'")
        self.backend = backend
        self._kept: WeakKeyDictionary[Any, TaskModel] = WeakKeyDictionary()

    def twin(self, net: Any, model: TaskModel) -> TaskModel:
        """Return the compiled twin of a `model` that `net` made, with the same weights and in the same mode."""
        twin = self._kept.get(net)
        if twin is None or _shape(twin) != _shape(model):
            twin = self._kept[net] = copy.deepcopy(model)
            twin.body.compile(backend=self.backend)
            stages: Any = getattr(twin.body, "stages", None)
            if stages is not None:
                vars(twin.body)["stages"] = torch.compile(stages, backend=self.backend)
        else:
            twin.load_state_dict(model.state_dict())
        return twin.train(model.training)


def _shape(model: TaskModel) -> list[tuple[str, torch.Size, torch.device]]:
    return [(name, value.shape, value.device) for name, value in model.state_dict().items()]
