"""Runs task models over inputs; owns device and precision."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from alenv.device import has_native_bfloat16, pick_device
from alenv.gathered import Gathered
from alenv.geometry import products
from alenv.memory import in_blocks
from alenv.metrics import classification
from alenv.model import TaskModel
from alenv.task import Examples

SMALL_NET = 500_000  # parameters
READ_AT_ONCE = 2**16  # inputs whose lengths are read together
LINE = 16  # heads and rows of a product are padded to multiples of it
PIECE_ELEMENTS = 2**18  # numbers of features, or of logits, that are multiplied at once: 1 MB, which stays in the cache


class Outputs(NamedTuple):
    """What one pass over inputs gives; float32."""

    embeddings: Float[Tensor, "n D"]
    logits: Float[Tensor, "n C"]
    aux: dict[str, Tensor]


class Scores(NamedTuple):
    """What a model says of a whole task: `Trainer.outputs` and `evaluate`, computed for many campaigns at once.

    Attributes:
        logits: returns those of the given pool indices.
        validation: metrics on the validation split.
        test: metrics on the test split.
        known: what follows for the candidates, by its name in the round.
    """

    logits: Callable[[Int[Tensor, " u"]], Float[Tensor, "u C"]]
    validation: dict[str, float]
    test: dict[str, float]
    known: Mapping[str, Any] = MappingProxyType({})


class Inference:
    """What runs models that are trained: device, precision and block size of a `Trainer`, which says what they are.

    Args:
        device: "auto" (CUDA if there is one), or any torch device.
        precision: "auto", "float32" or "bfloat16".
        inference_batch: examples per forward pass.
    """

    def __init__(
        self, device: str = "auto", precision: Literal["auto", "float32", "bfloat16"] = "auto", inference_batch: int = 2048
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"expected trainer.precision=auto, float32 or bfloat16, got '{precision}'")
        self.device = pick_device(device)
        self.precision, self.inference_batch = precision, inference_batch

    def place(self, model: TaskModel, inputs: Tensor) -> TaskModel:
        """Return `model` on the device, in the memory format that suits `inputs`."""
        if model.linear.weight.device != self.device:
            model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.half(inputs) else model

    @torch.no_grad()
    def outputs(self, model: TaskModel, inputs: Num[Tensor, "n ..."] | Gathered) -> Outputs:
        """Run `model` over `inputs` once, without augmentation or noise; of large inputs a block at a time is read."""
        return self._mapped(lambda block: self._outputs(model, block), model, inputs)

    def evaluate(
        self, model: TaskModel, examples: Examples, groups: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, float]:
        """Return `alenv.metrics.classification` of `model` on `examples`; empty if there are none."""
        known = examples.known
        return classification(self.outputs(model, known.inputs).logits, known.targets, groups) if len(known) else {}

    @torch.no_grad()
    def features(self, model: TaskModel, inputs: Num[Tensor, "n ..."] | Gathered) -> Float[Tensor, "n D"]:
        """Return what the head of `model` sees of `inputs`."""

        def features(block: Tensor) -> Outputs:
            with self.autocast(block):
                h = model.features(block).float()
            return Outputs(h, h[:, :0], {})

        return self._mapped(features, model, inputs).embeddings

    def _mapped(self, compute: Callable[[Tensor], Outputs], model: TaskModel, inputs: Num[Tensor, "n ..."] | Gathered) -> Outputs:
        """Return the outputs of all inputs in their order, computed in blocks, of like length where lengths vary."""
        lengths = _lengths(model, inputs)
        order = None if lengths is None else lengths.sort(descending=True, stable=True).indices
        whole: dict[str, Tensor] = {}
        for rows, found in self._blocks(compute, inputs, order):
            if order is None and len(found.embeddings) == len(inputs) and found.logits.is_contiguous():
                return found
            for name, part in {"embeddings": found.embeddings, "logits": found.logits, **found.aux}.items():
                if name not in whole:
                    whole[name] = part.new_empty(len(inputs), *part.shape[1:])
                whole[name][rows if order is None else order[rows]] = part
        return Outputs(whole.pop("embeddings"), whole.pop("logits"), whole) if whole else compute(inputs[:0])

    def _blocks(
        self, compute: Callable[[Tensor], Outputs], inputs: Num[Tensor, "n ..."] | Gathered, order: Int[Tensor, " n"] | None
    ) -> Iterator[tuple[slice, Outputs]]:
        def block(rows: slice) -> Outputs:
            return compute(inputs[rows] if order is None else inputs[order[rows]])

        return in_blocks(block, len(inputs), self.inference_batch, "inference", bar=False)

    def _outputs(self, model: TaskModel, inputs: Tensor) -> Outputs:
        with self.autocast(inputs):
            stages, h = model.stages(inputs) if len(model.aux) else ([], model.features(inputs))
        aux = model.aux_outputs([stage.float() for stage in stages])
        h = h.float()
        return Outputs(h, Heads([model]).all_logits(h).T if model.solver == "lbfgs" else model.head(h), aux)

    @contextlib.contextmanager
    def threads(self, model: TaskModel) -> Iterator[None]:
        """Compute with one CPU thread while a small dense net is trained or searched.

        Its steps take microseconds: two threads win nothing, and lose a hundredfold where another process holds one of the cores.
        """
        before = torch.get_num_threads()
        small = sum(p.numel() for p in model.parameters()) <= SMALL_NET and not any(
            isinstance(m, nn.Conv2d) for m in model.modules()
        )
        if self.device.type == "cpu" and small:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def half(self, inputs: Tensor | Gathered) -> bool:
        """Whether nets run in bfloat16 on such inputs."""
        tokens = inputs.dim() == 2 and inputs.dtype in (torch.int32, torch.int64)
        if self.precision == "auto":
            return (inputs.dim() == 4 or tokens) and has_native_bfloat16(self.device)
        return self.precision == "bfloat16" and (inputs.dim() == 4 or tokens)

    @contextlib.contextmanager
    def autocast(self, inputs: Tensor | Gathered) -> Iterator[None]:
        """Run nets on `inputs` in the precision this trainer uses."""
        if not self.half(inputs):
            yield
            return
        with torch.autocast(self.device.type, torch.bfloat16):
            yield


class Heads:
    """Linear heads on the same features, as one product: K outputs, those of all models one after the other.

    Rows and columns are padded to multiples of 16, for fewer of which libraries have other kernels: so the bits do not depend
    on how many models there are, nor on which other rows.

    Args:
        models: whose heads.
    """

    def __init__(self, models: Sequence[TaskModel]) -> None:
        weight = torch.cat([model.linear.weight.detach() for model in models])
        self.size = len(weight)
        self._weight = F.pad(weight, (0, 0, 0, -self.size % LINE))
        self._bias = torch.cat([model.linear.bias.detach() for model in models]).unsqueeze(1)

    def pieces(self, h: Float[Tensor, "n D"], elements: int = PIECE_ELEMENTS) -> Iterator[slice]:
        """Yield rows whose features, and whose logits, are few enough to stay in the cache."""
        size = min(elements // len(self._weight), 8 * elements // h.shape[1]) // LINE * LINE if h.is_cpu else len(h)
        size = max(LINE, size)
        return (slice(start, min(start + size, len(h))) for start in range(0, len(h), size))

    def logits(self, h: Float[Tensor, "n D"], out: Float[Tensor, "K n"] | None = None) -> Float[Tensor, "K n"]:
        """Return the logits, class by class in memory."""
        few = len(h) < LINE
        wide = products(self._weight, F.pad(h, (0, 0, 0, LINE - len(h))) if few else h)[: self.size, : len(h)]
        return wide.add_(self._bias) if out is None else torch.add(wide, self._bias, out=out)

    def all_logits(self, h: Float[Tensor, "n D"]) -> Float[Tensor, "K n"]:
        """Return the logits of any number of rows, made piece by piece."""
        whole = h.new_empty(self.size, len(h))
        for rows in self.pieces(h):
            self.logits(h[rows], out=whole[:, rows])
        return whole


def _lengths(model: TaskModel, inputs: Tensor | Gathered) -> Int[Tensor, " n"] | None:
    """Return `model.lengths` of all inputs, read in blocks."""
    if isinstance(inputs, Tensor):
        return model.lengths(inputs)
    if model.lengths(inputs[:1]) is None:
        return None
    return torch.cat([part for block in inputs.split(READ_AT_ONCE) if (part := model.lengths(block)) is not None])
