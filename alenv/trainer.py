"""Fits and evaluates task models; owns device and precision."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from alenv.augment import augmented
from alenv.convex import fit_softmax, one_hot
from alenv.gathered import Gathered
from alenv.heads import Head, HeadBatch
from alenv.memory import counted, in_blocks
from alenv.metrics import classification
from alenv.model import Laplace, TaskModel
from alenv.modes import Compiled, deterministic
from alenv.stacked import Lane, Law, rows_of, shape_of, stackable, train_stacked
from alenv.streams import Streams, preserved
from alenv.task import Augmentation, Examples

SMALL_NET = 500_000  # parameters
READ_AT_ONCE = 2**16  # inputs whose lengths are read together
ALIKE = 50  # batches' worth of inputs among which those of like length share a batch
CACHE_ELEMENTS = 2**20  # numbers of the features, or weights, of heads that are fitted together: 4 MB of float32
PIECE_ELEMENTS = 2**18  # numbers of features, or of logits, that are multiplied at once: 1 MB, which stays in the cache
STACK_ELEMENTS = 2**28  # weights of MLPs that a GPU trains at once


class Virtual(NamedTuple):
    """Training examples nobody bought: inputs as stored, and soft targets (v, C)."""

    inputs: Num[Tensor, "v ..."]
    targets: Float[Tensor, "v C"]


@dataclass(frozen=True, eq=False)
class Job:
    """One training: everything that decides its result.

    Attributes:
        net: makes the untrained model; called inside a seeded scope, so it starts from the same weights every round.
        inputs: (n, ...) labelled inputs, as stored.
        targets: (n,) their classes.
        streams: randomness of the campaign.
        round: selects the streams of this training.
        heads: extra heads.
        virtual: virtual examples, or None.
        weights: (n,) sample weights, or None for all one.
        augmentation: what the trainer may do to the inputs.
    """

    net: Callable[[], TaskModel]
    inputs: Num[Tensor, "n ..."]
    targets: Int[Tensor, " n"]
    streams: Streams
    round: int = 0
    heads: tuple[Head, ...] = ()
    virtual: Virtual | None = None
    weights: Float[Tensor, " n"] | None = None
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if len(self.targets) == 0 and self.virtual is None:
            raise ValueError("expected at least one labelled example to train on, got none; buy a larger initial set")

    @property
    def size(self) -> int:
        """How many examples are trained on, virtual ones included."""
        return len(self.targets) + (0 if self.virtual is None else len(self.virtual.targets))

    def examples(self, num_classes: int) -> tuple[Tensor, Float[Tensor, "m C"], Float[Tensor, " m"]]:
        """Return inputs, target probabilities and weights, virtual examples included."""
        inputs, targets = self.inputs, one_hot(self.targets, num_classes)
        weights = torch.ones(len(targets), device=targets.device) if self.weights is None else self.weights
        if self.virtual is not None:
            inputs = torch.cat([inputs, self.virtual.inputs])
            targets = torch.cat([targets, self.virtual.targets])
            weights = torch.cat([weights, weights.new_ones(len(self.virtual.targets))])
        return inputs, targets, weights


class Outputs(NamedTuple):
    """What one pass over inputs gives; float32."""

    embeddings: Float[Tensor, "n D"]
    logits: Float[Tensor, "n C"]
    aux: dict[str, Tensor]


class Scores(NamedTuple):
    """What a model says of a whole task: `Trainer.outputs` and `evaluate`, computed for many campaigns at once.

    Attributes:
        logits: (N, C) of the pool.
        validation: metrics on the validation split.
        test: metrics on the test split.
        known: what follows for the candidates, by its name in the round.
    """

    logits: Float[Tensor, "N C"]
    validation: dict[str, float]
    test: dict[str, float]
    known: Mapping[str, Any] = MappingProxyType({})


class Trainer:
    """The one trainer of all campaigns.

    A net whose solver is "lbfgs" is a linear head on fixed features and is fitted to its optimum, with a Laplace posterior as its
    noise. Every other net is trained with AdamW (decoupled weight decay), a linear warm-up and a cosine decay.

    Args:
        device: "auto" (CUDA if there is one), or any torch device.
        epochs: passes over the labelled set.
        min_steps: optimiser steps at least, however few labels there are.
        batch_size: examples a step.
        lr: peak learning rate.
        weight_decay: of AdamW.
        prior_precision: of the convex head: 1/variance of its Gaussian prior.
        augment: use the data set's augmentation.
        precision: "auto" is bfloat16 autocast for nets on images (inputs of four axes; channels-last too) and on tokens where
            the device has bfloat16 natively, float32 elsewhere; MLPs are trained so on vectors, too. Heads and losses are always
            float32.
        inference_batch: examples per forward pass when nothing is trained.
        deterministic: use torch's deterministic algorithms while fitting (and fail where an operation has none); on CPU results
            repeat bit by bit anyway.
        compile: backend of `torch.compile` for the passes of nets trained with AdamW, such as "inductor"; it compiles once or
            twice in a campaign, not in every round.
    """

    def __init__(
        self, device: str = "auto", epochs: int = 50, min_steps: int = 200, batch_size: int = 64, lr: float = 2e-3,
        weight_decay: float = 0.01, prior_precision: float = 1.0, augment: bool = True,
        precision: Literal["auto", "float32", "bfloat16"] = "auto", inference_batch: int = 2048,
        deterministic: bool = False, compile: str | None = None,
    ) -> None:  # fmt: skip
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"expected trainer.precision=auto, float32 or bfloat16, got '{precision}'")
        self.device = pick_device(device)
        self.epochs, self.min_steps, self.batch_size = epochs, min_steps, batch_size
        self.lr, self.weight_decay, self.prior_precision = lr, weight_decay, prior_precision
        self.augment, self.precision, self.inference_batch = augment, precision, inference_batch
        self.deterministic, self._compiled = deterministic, None if compile is None else Compiled(compile)

    def fit(self, job: Job) -> TaskModel:
        """Train a fresh model on `job` and return it in eval mode, without gradients."""
        return self.fit_many([job])[0]

    def fit_many(self, jobs: Sequence[Job]) -> list[TaskModel]:
        """Train one model per job; on CPU no job's result depends on the others, bit by bit.

        Linear heads and MLPs are trained together, those of like size as one batch.
        """
        with deterministic(self.deterministic):
            return self._fitted(jobs)

    def _fitted(self, jobs: Sequence[Job]) -> list[TaskModel]:
        with preserved(self.device):
            models = [self._fresh(job) for job in jobs]
        convex = [place for place, model in enumerate(models) if model.solver != "sgd"]
        if convex:
            with self.threads(models[convex[0]]):
                self._fit_convex([models[place] for place in convex], [jobs[place] for place in convex])
        stacks: dict[tuple[object, ...], list[int]] = {}
        for place, (model, job) in enumerate(zip(models, jobs, strict=True)):
            if model.solver != "lbfgs" or len(model.aux):
                stacks.setdefault(self._stack_of(model, job, place), []).append(place)
        for places in stacks.values():
            lanes = self._lanes(models[places[0]])
            for start in range(0, len(places), lanes):
                chosen = places[start : start + lanes]
                with self.threads(models[chosen[0]]):
                    trained = self._descended([models[place] for place in chosen], [jobs[place] for place in chosen])
                for place, model in zip(chosen, trained, strict=True):
                    models[place] = model
        return [model.eval().requires_grad_(False) for model in models]

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

    def restore(self, job: Job, state: dict[str, Tensor]) -> TaskModel:
        """Rebuild the model that `fit(job)` returned from its state dict, noise included."""
        with preserved(self.device):
            model = self._fresh(job)
        model.load_state_dict(state)
        if model.solver == "lbfgs":
            inputs, _, weights = job.examples(model.num_outputs)
            h = self.features(model, inputs)
            model.laplace = Laplace(h, model.head(h).detach(), weights, self.prior_precision)
        return model.eval().requires_grad_(False)

    def place(self, model: TaskModel, inputs: Tensor) -> TaskModel:
        """Return `model` on the device, in the memory format that suits `inputs`."""
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
        return Outputs(h, wide_logits(h, [model])[0] if model.solver == "lbfgs" else model.head(h), aux)

    def _fresh(self, job: Job) -> TaskModel:
        """Return the untrained model of a job; leaves the global generators seeded."""
        job.streams.on(self.device).seed_globals("init")
        model = self.place(job.net(), job.inputs)
        model.eval()  # a frozen body must not move its running statistics
        self._add_heads(model, job)
        return model

    def _fit_convex(self, models: Sequence[TaskModel], jobs: Sequence[Job]) -> None:
        """Fit linear heads: sets are padded to sizes that depend on themselves alone, and equal sizes share a batch."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for place, (model, job) in enumerate(zip(models, jobs, strict=True)):
            alike.setdefault((model.feature_dim, model.num_outputs, bucket(job.size)), []).append(place)
        for (width, _, size), places in alike.items():
            lanes = max(1, CACHE_ELEMENTS // (size * width))
            for start in range(0, len(places), lanes):
                chosen = places[start : start + lanes]
                sets = [self._convex_set(models[place], jobs[place]) for place in chosen]
                parts = (_stacked([given[part] for given in sets], size) for part in range(3))
                thetas = fit_softmax(*parts, prior_precision=self.prior_precision)
                for place, theta, given in zip(chosen, thetas, sets, strict=True):
                    self._set_head(models[place], theta, *given)

    def _convex_set(self, model: TaskModel, job: Job) -> tuple[Tensor, Tensor, Tensor]:
        inputs, targets, weights = job.examples(model.num_outputs)
        return self.features(model, inputs), targets, weights

    @torch.no_grad()
    def _set_head(self, model: TaskModel, theta: Tensor, h: Tensor, targets: Tensor, weights: Tensor) -> None:
        del targets
        model.linear.weight.copy_(theta[:, :-1])
        model.linear.bias.copy_(theta[:, -1])
        if model.solver == "lbfgs":  # else the net moves on from here
            model.laplace = Laplace(h, model.head(h), weights, self.prior_precision)

    def _stack_of(self, model: TaskModel, job: Job, place: int) -> tuple[object, ...]:
        """Return what jobs have in common that are trained as one batch: `place` itself where a job is trained alone."""
        if self._compiled is not None or not stackable(model):
            return (place,)
        batches, _ = self._passes(job.size, self.batch_size)
        alone = place if job.heads or self._augmentation(job) is not None else None
        return (*shape_of(model), batches, rows_of(job.size, batches), alone)

    def _lanes(self, model: TaskModel) -> int:
        """Return how many nets are trained at once: on CPU what fits its cache, and large nets one by one."""
        size = sum(p.numel() for p in model.parameters())
        return max(1, (STACK_ELEMENTS if self.device.type == "cuda" else CACHE_ELEMENTS if size <= SMALL_NET else 1) // size)

    def _descended(self, models: Sequence[TaskModel], jobs: Sequence[Job]) -> Sequence[TaskModel]:
        """Return the models after gradient descent; where memory does not suffice, others trained with smaller batches.

        Several at once, if they are of one stack.
        """
        size = self.batch_size
        while True:
            try:
                self._descend_all(models, jobs, size)
                return models
            except torch.OutOfMemoryError:
                if len(models) == size == 1:
                    raise
            with preserved(self.device):
                models = [self._fresh(job) for job in jobs]
            if len(models) > 1:
                half = len(models) // 2
                return [*self._descended(models[:half], jobs[:half]), *self._descended(models[half:], jobs[half:])]
            size //= 2
            warnings.warn(f"out of memory while training; starting again with trainer.batch_size={size}", stacklevel=2)
            if models[0].solver != "sgd":
                self._fit_convex(models, jobs)

    def _descend_all(self, models: Sequence[TaskModel], jobs: Sequence[Job], batch_size: int) -> None:
        with jobs[0].streams.scoped("train/library", jobs[0].round):  # dropout inside bodies and heads that are not ours
            if self._compiled is None and stackable(models[0]):
                self._descend_stacked(models, jobs, batch_size)
            else:
                (model,), (job,) = models, jobs
                self._descend(model, job, batch_size)

    def _descend_stacked(self, models: Sequence[TaskModel], jobs: Sequence[Job], batch_size: int) -> None:
        lanes = []
        for model, job in zip(models, jobs, strict=True):
            streams = job.streams.on(self.device)
            order, noise = streams("train/order", job.round), streams("train/noise", job.round)
            given = job.examples(model.num_outputs)
            lanes.append(Lane(model, *given, order, noise, job.heads, self._augmentation(job)))
        batches, epochs = self._passes(jobs[0].size, batch_size)
        schedule = _warm_cosine(epochs * batches)
        train_stacked(lanes, Law(epochs, batches, self.lr, self.weight_decay, schedule, self._half_stacks()))

    def _passes(self, count: int, batch_size: int) -> tuple[int, int]:
        """Return batches an epoch, and epochs."""
        batches = math.ceil(count / min(batch_size, count))
        return batches, max(self.epochs, math.ceil(self.min_steps / batches))

    def _augmentation(self, job: Job) -> Augmentation | None:
        return job.augmentation if self.augment and job.inputs.dim() == 4 else None

    def _half_stacks(self) -> bool:
        """Whether MLPs are trained with products in bfloat16, on vectors too."""
        return self.precision == "bfloat16" or (self.precision == "auto" and has_native_bfloat16(self.device))

    def _descend(self, model: TaskModel, job: Job, batch_size: int) -> None:
        """Train by gradient descent whatever the convex solver has not: the whole net, or its extra heads alone."""
        frozen = model.solver == "lbfgs"
        fresh = model
        if self._compiled is not None and not frozen:
            model = self._compiled.twin(job.net, fresh)
        if frozen:
            model.requires_grad_(False)
            model.aux.requires_grad_(True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            return
        inputs, targets, weights = job.examples(model.num_outputs)
        augmentation = None if frozen else self._augmentation(job)
        streams = job.streams.on(self.device)
        order, noise = streams("train/order", job.round), streams("train/noise", job.round)
        lengths, (per_epoch, epochs) = model.lengths(inputs), self._passes(len(inputs), batch_size)
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(epochs * per_epoch))
        (model.aux if frozen else model).train()
        for epoch in counted(range(epochs), "training"):
            shuffled = torch.randperm(len(inputs), generator=order, device=self.device)
            for rows in _batches(shuffled, per_epoch, lengths, order):
                x = inputs[rows]
                if augmentation is not None:
                    x = augmented(x, augmentation, noise)
                loss = self._loss(model, job, x, targets[rows], weights[rows], rows, noise, (epoch, epochs))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        if model is not fresh:
            fresh.load_state_dict(model.state_dict())

    def _loss(
        self, model: TaskModel, job: Job, x: Tensor, targets: Tensor, weights: Tensor, rows: Tensor,
        noise: torch.Generator, progress: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        with self.autocast(x):
            stages, h = model.stages(x) if job.heads else ([], model.features(x))
        logits = model.head(model.dropped(h.float(), noise))
        loss = (F.cross_entropy(logits, targets, reduction="none") * weights).mean()
        for head in job.heads:
            seen = [s.float() if head.reaches_body(*progress) else s.detach().float() for s in stages]
            module = model.aux[head.name]
            loss = loss + head.loss(HeadBatch(module, module(seen), logits.detach(), targets, rows, *progress))
        return loss

    def _add_heads(self, model: TaskModel, job: Job) -> None:
        if not job.heads:
            return
        with torch.no_grad():
            stages, _ = model.stages(job.inputs[:1])
        shapes = [stage.shape[1:] for stage in stages]
        for head in job.heads:
            job.streams.on(self.device).seed_globals(f"init/heads/{head.name}")
            model.aux[head.name] = head.build(shapes, model.num_outputs, job.size).to(self.device)

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


def _lengths(model: TaskModel, inputs: Tensor | Gathered) -> Int[Tensor, " n"] | None:
    """Return `model.lengths` of all inputs, read in blocks."""
    if isinstance(inputs, Tensor):
        return model.lengths(inputs)
    if model.lengths(inputs[:1]) is None:
        return None
    return torch.cat([part for block in inputs.split(READ_AT_ONCE) if (part := model.lengths(block)) is not None])


def _batches(
    shuffled: Int[Tensor, " n"], count: int, lengths: Int[Tensor, " n"] | None, generator: torch.Generator
) -> Sequence[Tensor]:
    """Return `count` batches; given lengths, of like length among `ALIKE` batches' worth of examples, in random order."""
    if lengths is None:
        return shuffled.tensor_split(count)
    windows = shuffled.tensor_split(-(-count // ALIKE))
    alike = torch.cat([window[lengths[window].sort(stable=True).indices] for window in windows])
    batches = alike.tensor_split(count)
    return [batches[i] for i in torch.randperm(count, generator=generator, device=generator.device).tolist()]


@torch.no_grad()
def wide_logits(h: Float[Tensor, "n D"], models: Sequence[TaskModel]) -> list[Float[Tensor, "n C"]]:
    """Return the logits of linear heads on the same features, from products of many columns; class by class in memory.

    Rows and columns are padded to multiples of 16, for fewer of which libraries have other kernels: so the bits do not depend
    on how many models there are, nor on which other rows.
    """
    sizes = [model.num_outputs for model in models]
    weight = F.pad(torch.cat([model.linear.weight for model in models]), (0, 0, 0, -sum(sizes) % 16))
    bias = F.pad(torch.cat([model.linear.bias for model in models]), (0, -sum(sizes) % 16)).unsqueeze(1)
    found = [h.new_empty(size, len(h)) for size in sizes]
    step = max(16, min(PIECE_ELEMENTS // len(weight), 8 * PIECE_ELEMENTS // h.shape[1])) if h.is_cpu else max(1, len(h))
    for start in range(0, len(h), step):
        some = h[start : start + step]
        wide = _product(weight, some if len(some) >= 16 else F.pad(some, (0, 0, 0, 16 - len(some)))).add_(bias)
        for into, part in zip(found, wide[: sum(sizes), : len(some)].split(sizes), strict=True):
            into[:, start : start + step] = part
    return [logits.T for logits in found]


def _product(a: Float[Tensor, "m D"], b: Float[Tensor, "n D"]) -> Float[Tensor, "m n"]:
    """Return a b^T; on CPU by oneDNN where torch has it, which needs half the time of MKL on an AMD EPYC."""
    if a.is_cpu and torch.backends.mkldnn.is_available():
        return F.linear(a.to_mkldnn(), b.to_mkldnn()).to_dense()
    return a @ b.T


def bucket(count: int) -> int:
    """Return the size a set of `count` examples is padded to: at most an eighth more, or a multiple of 16."""
    step = max(16, 2 ** (max(1, count).bit_length() - 4))
    return -(-count // step) * step


def _stacked(sets: Sequence[Tensor], size: int) -> Tensor:
    """Return (M, size, ...), zeros below each set's rows."""
    whole = sets[0].new_zeros(len(sets), size, *sets[0].shape[1:])
    for place, rows in zip(whole, sets, strict=True):
        place[: len(rows)] = rows
    return whole


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware (emulated support is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(bool(getattr(torch.cpu, flag, bool)()) for flag in flags)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)
    return lambda step: (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
