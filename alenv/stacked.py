"""Many MLPs of one shape trained as one batched computation, each as if it were alone."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adamw import adamw

from alenv.augment import augmented
from alenv.heads import Head, HeadBatch
from alenv.model import TaskModel, keep_below, random_bits
from alenv.task import Augmentation

LINE = 16  # units and classes are padded to it, and rows to half of it: below, kernels change with the number of lanes
NEVER = -1e30  # bias of classes that are padding
HALF_FROM = 2**16  # weights of the largest hidden layer from which bfloat16 pays for its conversions
DRAW_ELEMENTS = 2**26  # numbers for dropout that a GPU draws at once


class Layers(nn.Module):
    """The body of an MLP: hidden ReLU layers that also hand out what each of them computed.

    Args:
        sizes: of the input, then of every layer.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes))

    @property
    def linears(self) -> list[nn.Linear]:
        """The layers' weights and biases."""
        return [module for layer in self.layers for module in layer.modules() if isinstance(module, nn.Linear)]

    def stages(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what every layer computed, and the last of it."""
        x, maps = x.flatten(1), []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps, x

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return self.stages(x)[1]


class Lane(NamedTuple):
    """One training.

    Attributes:
        model: what is trained, in place.
        inputs: (n, ...) as stored.
        targets: (n, C) class probabilities.
        weights: (n,) of the examples.
        order: draws the order of the examples.
        noise: draws augmentation and dropout.
        heads: extra heads, of `model.aux`; with any, a lane is trained alone.
        augmentation: what is done to inputs, or None; with it, too.
    """

    model: TaskModel
    inputs: Tensor
    targets: Float[Tensor, "n C"]
    weights: Float[Tensor, " n"]
    order: torch.Generator
    noise: torch.Generator
    heads: tuple[Head, ...] = ()
    augmentation: Augmentation | None = None


class Law(NamedTuple):
    """How all lanes are trained: AdamW (decoupled weight decay) on batches of nearly equal size.

    Attributes:
        epochs: passes over the examples.
        batches: of an epoch.
        lr: peak learning rate.
        weight_decay: of AdamW.
        schedule: maps a step to its share of the peak.
        half: multiply the matrices of large hidden layers in bfloat16; weights, optimiser, head and losses stay float32.
    """

    epochs: int
    batches: int
    lr: float
    weight_decay: float
    schedule: Callable[[int], float]
    half: bool


def stackable(model: TaskModel) -> bool:
    """Whether `train_stacked` can train `model`: an MLP of ours, all of it."""
    trained = all(p.requires_grad for part in (model.body, model.linear) for p in part.parameters())
    return type(model) is TaskModel and type(model.body) is Layers and model.solver == "sgd" and trained


def shape_of(model: TaskModel) -> tuple[float, ...]:
    """Return what models of one stack have in common: layer sizes and dropout."""
    layers = _linears(model)
    return (model.dropout, layers[0].in_features, *(layer.out_features for layer in layers))


def rows_of(count: int, batches: int) -> int:
    """Return how many rows batches are padded to."""
    return _padded(math.ceil(count / batches), LINE // 2)


@torch.no_grad()
def train_stacked(lanes: Sequence[Lane], law: Law) -> None:
    """Train the models of all lanes in place, with forward and backward passes written out: gradients need no graph.

    On CPU a lane's result does not depend on the others, bit by bit. All have one `shape_of` and `rows_of`. A step
    costs at most 6 B P operations a lane, for P weights and batches of B, and a lane 16 P bytes: weights, gradients, moments.
    """
    first, rows = lanes[0].model, rows_of(len(lanes[0].targets), law.batches)
    net = _Net([lane.model for lane in lanes], rows, law.half)
    data = _Data(lanes, law.batches, net.stages[0])
    noise = _Noise(lanes, data.counts, net.dropped)
    optimizer, of_heads = _AdamW(net.flat, law.weight_decay), list(first.aux.train().parameters())
    others = torch.optim.AdamW(of_heads, weight_decay=law.weight_decay, fused=True) if of_heads else None
    for epoch in range(law.epochs):
        for k, (rows, targets, totals) in enumerate(zip(*data.shuffled(), strict=True)):
            data.inputs(rows, k, into=net.stages[0])
            logits = net.forward(noise.mask(k))
            more = _heads_slopes(lanes[0], net, rows[0], data.counts[0][k], (epoch, law.epochs))
            net.backward(torch.softmax(logits, 2, out=net.error).mul_(totals).sub_(targets), more)
            lr = law.lr * law.schedule(epoch * law.batches + k)
            optimizer.step(lr)
            if others is not None:
                others.param_groups[0]["lr"] = lr
                others.step()
            net.round_weights()
    net.hand_back([lane.model for lane in lanes])


class _Net:
    """E MLPs whose weights lie in one (E, P) tensor, layer by layer: (out, in), then biases; and room for what they compute."""

    def __init__(self, models: Sequence[TaskModel], rows: int, half: bool) -> None:
        linears, lanes = _linears(models[0]), len(models)
        self.gain = 1 / (1 - models[0].dropout)  # of the features that dropout keeps
        self.widths = [linears[0].in_features, *(layer.out_features for layer in linears)]
        self.sizes = [_padded(width) for width in self.widths]
        self.flat = linears[0].weight.new_zeros(lanes, sum(a * b + b for a, b in itertools.pairwise(self.sizes)))
        self.flat.grad = torch.zeros_like(self.flat)
        *self.hidden, self.head = _views(self.flat, self.sizes)
        *self.slopes, self.head_slopes = _views(self.flat.grad, self.sizes)
        for place, model in enumerate(models):
            for layer, (weight, bias) in zip(_linears(model), [*self.hidden, self.head], strict=True):
                weight[place, : layer.out_features, : layer.in_features] = layer.weight
                bias[place, : layer.out_features] = layer.bias
        self.head[1][:, self.widths[-1] :] = NEVER
        self.half = half and max(weight[0].numel() for weight, _ in self.hidden) >= HALF_FROM
        # what is multiplied, and the gradients of the products: the weights themselves, or copies in bfloat16
        self.used, self.found = self.hidden, self.slopes
        if self.half:
            self.used = [(weight.bfloat16().contiguous(), bias.bfloat16()) for weight, bias in self.hidden]
            self.found = [(torch.empty_like(weight), torch.empty_like(bias)) for weight, bias in self.used]
        self.maps = [(bias.unsqueeze(1), weight.mT) for weight, bias in (*self.used, self.head)]  # (E, 1, out), (E, in, out)
        self.stages = [self.used[0][0].new_zeros(lanes, rows, size) for size in self.sizes[:-1]]  # inputs, hidden layers
        self.back = [torch.empty_like(stage) for stage in self.stages]  # gradients in them
        self.dropped, self.slope = (self.flat.new_zeros(lanes, rows, self.sizes[-2]) for _ in range(2))
        self.logits, self.error = (self.flat.new_zeros(lanes, rows, self.sizes[-1]) for _ in range(2))

    def forward(self, mask: Tensor | None) -> Float[Tensor, "E B C"]:
        """Return the logits of `stages[0]`."""
        for (bias, weight), x, into in zip(self.maps, self.stages, self.stages[1:], strict=False):
            torch.baddbmm(bias, x, weight, out=into).relu_()
        self.dropped.copy_(self.stages[-1])
        if mask is not None:
            self.dropped.mul_(mask)
        bias, weight = self.maps[-1]
        return torch.baddbmm(bias, self.dropped, weight, alpha=self.gain, out=self.logits)

    def backward(self, error: Float[Tensor, "E B C"], extra: Sequence[Tensor | None] = ()) -> None:
        """Write the gradients of the weights, given those in the logits, and more in the first lane's hidden layers."""
        torch.sum(error, 1, out=self.head_slopes[1])
        error.mul_(self.gain)
        torch.bmm(error.mT, self.dropped, out=self.head_slopes[0])
        torch.bmm(error, self.head[0], out=self.slope)
        self.back[-1].copy_(_where_positive(self.slope, self.dropped))
        for place in reversed(range(len(self.used))):
            slope, (weight, bias) = self.back[place + 1], self.found[place]
            if extra and (more := extra[place]) is not None:
                slope[0, : len(more), : more.shape[1]] += more
            torch.bmm(slope.mT, self.stages[place], out=weight)
            torch.sum(slope, 1, out=bias)
            if self.half:
                for into, values in zip(self.slopes[place], self.found[place], strict=True):
                    into.copy_(values)
            if place:
                torch.bmm(slope, self.used[place][0], out=self.back[place])
                _where_positive(self.back[place], self.stages[place])

    def round_weights(self) -> None:
        """Round the weights anew, where they are used in bfloat16."""
        if self.half:
            for used, layer in zip(self.used, self.hidden, strict=True):
                for into, values in zip(used, layer, strict=True):
                    into.copy_(values)

    def hand_back(self, models: Sequence[TaskModel]) -> None:
        """Write the weights into the models."""
        for place, model in enumerate(models):
            for layer, (weight, bias) in zip(_linears(model), [*self.hidden, self.head], strict=True):
                layer.weight.copy_(weight[place, : layer.out_features, : layer.in_features])
                layer.bias.copy_(bias[place, : layer.out_features])


class _AdamW:
    """Torch's fused AdamW of one tensor, without what its class does around the kernel: 5 to 8 % of a step of small stacks."""

    def __init__(self, weights: Tensor, weight_decay: float) -> None:
        assert weights.grad is not None
        self.weights, self.slopes, self.steps = [weights], [weights.grad], [weights.new_zeros(())]
        self.means, self.squares = [torch.zeros_like(weights)], [torch.zeros_like(weights)]
        self.weight_decay = weight_decay

    def step(self, lr: float) -> None:
        adamw(
            self.weights, self.slopes, self.means, self.squares, [], self.steps, fused=True, amsgrad=False, maximize=False,
            lr=lr, weight_decay=self.weight_decay, beta1=0.9, beta2=0.999, eps=1e-8,
        )  # fmt: skip


class _Data:
    """The examples of all lanes, one below the other, then a row of zeros that pads batches; targets are times weights."""

    def __init__(self, lanes: Sequence[Lane], batches: int, like: Float[Tensor, "E B D"]) -> None:
        self.lanes, device = lanes, like.device
        lengths, classes = [len(lane.targets) for lane in lanes], lanes[0].targets.shape[1]
        self.starts, self.end = [0, *itertools.accumulate(lengths)][:-1], sum(lengths)
        self.counts = [[len(part) for part in torch.empty(n, 0).tensor_split(batches)] for n in lengths]
        # each lane's order of its examples, then the row of zeros; and the place in it of each row of each batch: (batches, E, B)
        self.order = torch.full((len(lanes), max(lengths) + 1), self.end, device=device)
        self.drawn = [order[:n] for order, n in zip(self.order, lengths, strict=True)]
        self.places = torch.stack([_places(counts, like.shape[1]) for counts in self.counts], 1).to(device)
        self.shares = 1 / torch.tensor(self.counts, device=device).T[:, :, None, None]  # (batches, E, 1, 1)
        self.targets = torch.zeros(self.end + 1, _padded(classes), device=device)
        self.plain = lanes[0].augmentation is None
        self.x = like.new_zeros(self.end + 1 if self.plain else 0, like.shape[2])
        for lane, start, n in zip(lanes, self.starts, lengths, strict=True):
            self.targets[start : start + n, :classes] = lane.targets * lane.weights.unsqueeze(1)
            if self.plain:
                x = lane.model.normalized(lane.inputs).flatten(1)
                self.x[start : start + n, : x.shape[1]] = x

    def shuffled(self) -> tuple[Int[Tensor, "batches E B"], Float[Tensor, "batches E B C"], Float[Tensor, "batches E B 1"]]:
        """Draw an epoch's batches; return rows of examples, their targets over the size of the batch, and sums of these."""
        for drawn, lane, start in zip(self.drawn, self.lanes, self.starts, strict=True):
            torch.randperm(drawn.numel(), generator=lane.order, out=drawn).add_(start)
        rows = self.order.expand(len(self.places), -1, -1).gather(2, self.places)
        targets = self.targets[rows].mul_(self.shares)
        return rows, targets, targets.sum(3, keepdim=True)

    def inputs(self, rows: Int[Tensor, "E B"], k: int, into: Float[Tensor, "E B D"]) -> None:
        """Write the inputs of the k-th batches."""
        if self.plain:
            torch.index_select(self.x, 0, rows.flatten(), out=into.view(rows.numel(), -1))
        else:
            (lane,), count = self.lanes, self.counts[0][k]
            assert lane.augmentation is not None
            x = lane.model.normalized(augmented(lane.inputs[rows[0, :count]], lane.augmentation, lane.noise)).flatten(1)
            into[0, :count, : x.shape[1]] = x


class _Noise:
    """What dropout keeps, drawn by each lane's own generator: on CPU a step's at a time, as one net alone would."""

    def __init__(self, lanes: Sequence[Lane], counts: Sequence[Sequence[int]], like: Float[Tensor, "E B D"]) -> None:
        (count, rows, _), model = like.shape, lanes[0].model
        self.generators, self.counts = [lane.noise for lane in lanes], counts
        self.dropout, self.width = model.dropout, model.feature_dim
        self.steps = 1 if like.is_cpu else max(1, min(DRAW_ELEMENTS // like.numel(), len(counts[0])))
        room = torch.zeros(count, self.steps * rows * self.width // 4, dtype=torch.int64, device=like.device)
        self.bits = room.view(torch.int16).view(count, self.steps, rows, self.width)
        # of each lane what a batch of n draws
        self.rooms = [
            {n: part if self.steps > 1 else part[: -(-n * self.width // 4)] for n in set(sizes)}
            for part, sizes in zip(room, counts, strict=True)
        ]
        self.kept = torch.zeros_like(like)

    def mask(self, k: int) -> Float[Tensor, "E B D"] | None:
        """Return 1 for what the k-th batches keep and 0 for what they drop; None without dropout."""
        if self.dropout == 0:
            return None
        if k % self.steps == 0:
            for rooms, generator, counts in zip(self.rooms, self.generators, self.counts, strict=True):
                random_bits(rooms[counts[k]], generator)
        torch.lt(self.bits[:, k % self.steps], keep_below(self.dropout), out=self.kept[..., : self.width])
        return self.kept


@torch.enable_grad()
def _heads_slopes(
    lane: Lane, net: _Net, rows: Int[Tensor, " B"], count: int, progress: tuple[int, int]
) -> list[Tensor | None]:  # fmt: skip
    """Set the gradients of the lane's extra heads, by autograd; return those that reach the hidden layers, if any do."""
    if not lane.heads:
        return []
    rows = rows[:count]
    shown = zip(net.stages[1:], net.widths[1:], strict=False)
    fixed = [stage[0, : len(rows), :width].float() for stage, width in shown]
    joint = [stage.detach().requires_grad_() for stage in fixed]
    logits, targets, loss = net.logits[0, : len(rows), : net.widths[-1]], lane.targets[rows], torch.zeros((), device=rows.device)
    lane.model.aux.zero_grad(set_to_none=True)
    for head in lane.heads:
        module = lane.model.aux[head.name]
        outputs = module(joint if head.reaches_body(*progress) else fixed)
        loss = loss + head.loss(HeadBatch(module, outputs, logits, targets, rows, *progress))
    if loss.requires_grad:
        loss.backward()
    return [None if stage.grad is None else _where_positive(stage.grad, stage.detach()) for stage in joint]


def _linears(model: TaskModel) -> list[nn.Linear]:
    assert isinstance(model.body, Layers)
    return [*model.body.linears, model.linear]


def _where_positive(slope: Tensor, computed: Tensor) -> Tensor:
    """Set `slope` to zero where ReLU was not passed."""
    return torch.ops.aten.threshold_backward.grad_input(slope, computed, 0, grad_input=slope)


def _padded(size: int, to: int = LINE) -> int:
    return size + -size % to


def _places(counts: Sequence[int], rows: int) -> Int[Tensor, "batches B"]:
    starts = torch.tensor([0, *itertools.accumulate(counts)])
    within = torch.arange(rows)
    return torch.where(within < torch.tensor(counts)[:, None], starts[:-1, None] + within, starts[-1])


def _views(flat: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return weights (E, out, in) and biases (E, out) that lie in `flat`."""
    views, start = [], 0
    for a, b in itertools.pairwise(sizes):
        views.append((flat[:, start : start + a * b].view(-1, b, a), flat[:, start + a * b : start + a * b + b]))
        start += a * b + b
    return views
