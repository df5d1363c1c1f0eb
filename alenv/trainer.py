"""Fits task models."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from alenv.augment import augmented
from alenv.convex import fit_softmax
from alenv.device import has_native_bfloat16
from alenv.heads import HeadBatch
from alenv.inference import Inference
from alenv.job import Job
from alenv.memory import counted
from alenv.model import Laplace, TaskModel
from alenv.modes import Compiled, deterministic
from alenv.stacked import Lane, Law, rows_of, shape_of, stackable, train_stacked
from alenv.streams import preserved
from alenv.task import Augmentation

ALIKE = 50  # batches' worth of inputs among which those of like length share a batch
CACHE_ELEMENTS = 2**20  # numbers of the features of heads that are fitted together: 4 MB of float32
CPU_STACK_ELEMENTS = 5 * 2**17  # weights of MLPs that a CPU trains at once: 15 MB with all that a step moves, for its last cache
GPU_STACK_ELEMENTS = 2**28


class Trainer(Inference):
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
        super().__init__(device, precision, inference_batch)
        self.epochs, self.min_steps, self.batch_size = epochs, min_steps, batch_size
        self.lr, self.weight_decay, self.prior_precision = lr, weight_decay, prior_precision
        self.augment, self.deterministic = augment, deterministic
        self._compiled = None if compile is None else Compiled(compile)

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
        settled = [job.like is not None and not job.heads for job in jobs]  # as twins are made
        return [model if done else model.eval().requires_grad_(False) for model, done in zip(models, settled, strict=True)]

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

    def _fresh(self, job: Job) -> TaskModel:
        """Return the untrained model of a job; leaves the global generators seeded."""
        if job.like is None:
            job.streams.on(self.device).seed_globals("init")
            model = self.place(job.net(), job.inputs).eval()  # a frozen body must not move its running statistics
        else:
            model = job.like.twin()
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
            logits = functools.partial(F.linear, h, model.linear.weight.detach(), model.linear.bias.detach())
            model.laplace = Laplace(h, logits, weights, self.prior_precision)

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
        return max(1, (GPU_STACK_ELEMENTS if self.device.type == "cuda" else CPU_STACK_ELEMENTS) // size)

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


def bucket(count: int) -> int:
    """Return the size a set of `count` examples is padded to: at most an eighth more, or a multiple of 16."""
    step = max(16, 2 ** (max(1, count).bit_length() - 4))
    return -(-count // step) * step


def _stacked(sets: Sequence[Tensor], size: int) -> Tensor:
    """Return (M, size, ...), zeros below each set's rows."""
    whole = sets[0].new_empty(len(sets), size, *sets[0].shape[1:])
    for place, rows in zip(whole, sets, strict=True):
        place[: len(rows)], place[len(rows) :] = rows, 0
    return whole


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)
    return lambda step: (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
