"""Tensor functions that strategies and selectors share: entropies, quantiles, draws; each has a brute-force twin in the tests."""

import platform
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

NARROW = 16  # classes below which a CPU's rows are too short for its vectors: then work goes class by class
COLUMNS = 48  # the same where rows are searched for two values
PIECE_ELEMENTS = 2**20  # numbers of a piece that should stay in the cache: 4 MB of float32
NEAR_ELEMENTS = 2**17  # numbers of a piece that is worked on in place: 512 kB stay in a core's own cache
SIDE = 256  # outcomes of either side that are joined at once: 256 kB of float32, read four times, stay near
X86 = platform.machine() in ("x86_64", "AMD64")


def entropy(probs: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch"]:
    """Return Shannon entropies in nats; 0 log 0 = 0. In pieces that stay in the cache."""
    rows = probs.reshape(-1, probs.shape[-1])
    found, size = probs.new_empty(len(rows)), max(1, NEAR_ELEMENTS // max(1, rows.shape[1]))
    room = torch.empty_like(rows[:size])
    for piece, out in zip(rows.split(size), found.split(size), strict=True):
        torch.sum(_log(piece, room[: len(piece)]).mul_(piece), 1, out=out)
    return found.neg_().view(probs.shape[:-1])


def _log(probs: Float[Tensor, "*batch"], out: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Write log p into `out`, finite where p = 0; on x86 numpy takes a third of torch's time for float32."""
    torch.clamp(probs, min=torch.finfo(probs.dtype).tiny, out=out)
    if not (X86 and out.is_cpu and out.dtype == torch.float32):
        return out.log_()
    array = out.numpy()
    np.log(array, out=array)
    return out


def _exp(values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return exp v; on x86 numpy takes half of torch's time for float32."""
    if not (X86 and values.is_cpu and values.dtype == torch.float32):
        return values.exp()
    return torch.from_numpy(np.exp(values.numpy()))


def softmax(logits: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
    """Return the probabilities of each row; a row's bits depend on nothing else. At C = 10 a tenth of `Tensor.softmax`'s time."""
    if logits.shape[1] >= NARROW or not _shared(logits):
        return logits.softmax(1)
    _, mass, total = class_masses(logits.T)
    return mass.div_(total.unsqueeze(-2))[:, : len(logits)].T.contiguous()


def class_masses(
    columns: Float[Tensor, "*M C n"],
) -> tuple[Float[Tensor, "*M C m"], Float[Tensor, "*M C m"], Float[Tensor, "*M m"]]:
    """Return logits less the largest of their column, what that is e to the power of, and its sum over classes.

    A column's bits depend on nothing else; there may be more columns than were given.
    """
    columns = _whole_vectors(columns)
    shifted = columns - columns.amax(-2, keepdim=True)
    mass = _exp(shifted)
    return shifted, mass, over_classes(mass)


def over_classes(columns: Float[Tensor, "*M C n"]) -> Float[Tensor, "*M n"]:
    """Return sums over classes; on CPU numpy adds one class after the other, torch few columns in another order than many."""
    return torch.from_numpy(np.add.reduce(columns.numpy(), -2)) if _shared(columns) else columns.sum(-2)


def class_log_softmax(logits: Float[Tensor, "*M n C"]) -> Float[Tensor, "*M C n"]:
    """Return the log-probabilities of each row, class by class; a row's bits depend on nothing else."""
    if logits.shape[-1] >= NARROW or not logits.is_cpu:
        return logits.log_softmax(-1).mT
    return _whole_vectors(logits.mT).log_softmax(-2)[..., : logits.shape[-2]]


def _whole_vectors(columns: Float[Tensor, "*M C n"]) -> Float[Tensor, "*M C m"]:
    """Return the columns padded to whole vectors: what is left over would take another path, with other bits."""
    over = columns.shape[-1] % 16
    if over:
        return F.pad(columns, (0, 16 - over))
    return columns if columns.stride(-1) == 1 else columns.contiguous()


def largest(columns: Float[Tensor, "*M C n"]) -> tuple[Float[Tensor, "*M n"], Int[Tensor, "*M n"]]:
    """Return the largest value over classes and the first class that has it: `max(-2)` in half its time."""
    most, count = columns.amax(-2, keepdim=True), columns.shape[-2]
    small = torch.int16 if count < 2**15 else torch.int64
    after = torch.arange(count, 0, -1, dtype=small, device=columns.device).unsqueeze(1)  # C for the first class, 1 for the last
    return most.squeeze(-2), count - ((columns == most).to(small) * after).amax(-2).long()


def top_two(values: Float[Tensor, "n C"]) -> Float[Tensor, "2 n"]:
    """Return the largest value of each row, and the second largest.

    The largest is found and masked, or, where classes are few, columns are taken one by one; in pieces that stay in the cache.
    `topk(2)` takes 20 times as long at C = 100.

    Raises:
        ValueError: fewer than two columns.
    """
    classes = values.shape[1]
    if classes < 2:
        raise ValueError(f"expected at least two classes, got {classes}; a margin needs a runner-up")
    size, found = max(1, NEAR_ELEMENTS // classes), values.new_empty(2, len(values))
    room = values.new_empty(classes * min(size, len(values)))
    two = _by_class if classes < COLUMNS else _by_mask
    for piece, (first, second) in zip(values.split(size), found.split(size, 1), strict=True):
        two(piece, room[: piece.numel()], first, second)
    return found


def _by_class(
    values: Float[Tensor, "n C"], room: Float[Tensor, " m"], first: Float[Tensor, " n"], second: Float[Tensor, " n"]
) -> None:
    columns = room.view(values.shape[1], -1)
    if _shared(values):
        np.copyto(columns.numpy(), values.numpy().T)  # in half of torch's time
    else:
        columns.copy_(values.T)
    one, other, *rest = columns
    torch.maximum(one, other, out=first)
    torch.minimum(one, other, out=second)
    for column in rest:
        torch.maximum(second, torch.minimum(first, column, out=one), out=second)
        torch.maximum(first, column, out=first)


def _by_mask(
    values: Float[Tensor, "n C"], room: Float[Tensor, " m"], first: Float[Tensor, " n"], second: Float[Tensor, " n"]
) -> None:
    rest = room.view(values.shape).copy_(values)
    which = torch.from_numpy(rest.numpy().argmax(1)) if _shared(rest) else rest.argmax(1)  # numpy: in a third of the time
    which = which.unsqueeze(1)
    first.copy_(rest.gather(1, which).squeeze(1))
    torch.amax(rest.scatter_(1, which, -torch.inf), 1, out=second)


def _shared(values: Tensor) -> bool:
    """Whether numpy can work on the tensor's own memory."""
    return values.is_cpu and values.dtype in (torch.float32, torch.float64)


def draw(mass: Float[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, ""]:
    """Return an index drawn in proportion to `mass`, by inverse CDF in float64; uniformly where all mass is zero."""
    total = mass.double().cumsum(0)
    flat = torch.arange(1, len(mass) + 1, dtype=torch.float64, device=mass.device)
    total = torch.where(total[-1] > 0, total, flat)
    u = torch.rand((), generator=generator, device=mass.device, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, u, right=True).clamp(max=len(mass) - 1)


def mask_without(size: int, positions: Int[Tensor, " k"]) -> Bool[Tensor, " size"]:
    """Return a mask of `size` that is false at `positions`."""
    mask = torch.ones(size, dtype=torch.bool, device=positions.device)
    mask[positions] = False
    return mask


def positions(mask: Bool[Tensor, " n"]) -> Int[Tensor, " k"]:
    """Return where a mask is true, ascending; on CPU numpy takes a quarter of `torch.nonzero`'s time."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.is_cpu else torch.nonzero(mask).flatten()


def upper_quantile(values: Float[Tensor, " n"], share: float) -> Float[Tensor, ""]:
    """Return a threshold with about `share` of the values above it: midway between the neighbours at that rank."""
    ordered = values.sort(descending=True).values
    rank = min(max(round(share * len(values)), 1), len(values) - 1) if len(values) > 1 else 0
    return (ordered[max(rank - 1, 0)] + ordered[rank]) / 2


def gaussian_mixture(
    values: Float[Tensor, " n"], components: int = 5, iterations: int = 50
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Fit a 1-D Gaussian mixture by EM and return weights, means and standard deviations.

    Values are standardised first, so the fit ignores their scale and offset; components start at equal quantiles and are at most
    as many as there are distinct values; no deviation falls below 1e-3 of the values' own. Deterministic.
    """
    centre, spread = values.mean(), values.std(unbiased=False)
    unit = torch.where(spread > 0, spread, 1.0)
    x = ((values - centre) / unit).double()
    count = max(1, min(components, len(torch.unique(x))))
    means = torch.quantile(x, (torch.arange(count, device=x.device, dtype=x.dtype) + 0.5) / count)
    deviations, weights = torch.full_like(means, 1.0 / count), torch.full_like(means, 1.0 / count)
    for _ in range(iterations):
        z = (x[:, None] - means) / deviations
        share = torch.softmax(weights.log() - deviations.log() - 0.5 * z * z, dim=1)  # (n, K) responsibilities
        mass = share.sum(0).clamp(min=1e-9)
        means = (share * x[:, None]).sum(0) / mass
        deviations = ((share * (x[:, None] - means).square()).sum(0) / mass).sqrt().clamp(min=1e-3)
        weights = mass / mass.sum()
    return weights.to(values), (means * unit + centre).to(values), (deviations * unit).to(values)


def mixture_upper_quantile(values: Float[Tensor, " n"], share: float, components: int = 5) -> Float[Tensor, ""]:
    """Return the threshold above which a Gaussian mixture fitted to `values` has mass `share`, by bisection of its CDF."""
    weights, means, deviations = (part.double() for part in gaussian_mixture(values, components))
    low, high = (means - 10 * deviations).min(), (means + 10 * deviations).max()
    for _ in range(60):
        middle = (low + high) / 2
        above = (weights * torch.special.ndtr((means - middle) / deviations)).sum()
        low, high = torch.where(above > share, middle, low), torch.where(above > share, high, middle)
    return ((low + high) / 2).to(values)


def class_shortfall(labels: Int[Tensor, " L"], num_classes: int, budget: int) -> Int[Tensor, " C"]:
    """Return what each class lacks of an equal share, floor((L + budget) / C), of all labels once `budget` more are bought."""
    share = (len(labels) + budget) // num_classes
    return (share - torch.bincount(labels, minlength=num_classes)).clamp(min=0)


def mutual_information(draws: Float[Tensor, "T n C"]) -> Float[Tensor, " n"]:
    """Return I(label; draw) = H(mean_t p_t) - mean_t H(p_t) in nats, in [0, log min(T, C)].

    In pieces that stay in the cache, draw after draw: each number is read once.
    """
    count, n, classes = draws.shape
    found, size = draws.new_empty(n), max(1, NEAR_ELEMENTS // max(1, classes))
    room = draws.new_empty(3, min(size, n), classes)
    for piece, out in zip(draws.split(size, 1), found.split(size), strict=True):
        logs, mean, apart = room[:, : len(out)].zero_()
        for probs in piece:
            apart.addcmul_(_log(probs, logs), probs)
            mean += probs
        mean /= count
        torch.sum((apart / count).sub_(_log(mean, logs).mul_(mean)), 1, out=out)
    return found.clamp_(min=0)


def gumbel(like: Float[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, " n"]:
    """Return standard Gumbel noise: the k largest of log m + gumbel are k draws in proportion to m, without replacement."""
    return -torch.empty_like(like).exponential_(generator=generator).log()


def law_of_rest(log_mass: Float[Tensor, " n"], taken: Int[Tensor, " t"]) -> Float[Tensor, " n"]:
    """Return exp(log_mass) with what is `taken` at 0, normalised; uniform over the rest where all of that is 0."""
    left = mask_without(len(log_mass), taken)
    rest = log_mass.masked_fill(~left, -torch.inf)
    law = torch.where(rest.max() > -torch.inf, (rest - rest.max()).exp().nan_to_num(0.0), left.to(log_mass))
    return law / law.sum().clamp(min=torch.finfo(law.dtype).tiny)


def outcomes(
    draws: Float[Tensor, "T n C"], coverage: float = 1.0
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, "m T"]]:
    """Return every label a candidate may turn out to have, and what it would tell about the draws.

    Each row's likeliest labels, until they hold `coverage` of its mean probability, stand for themselves; the others count as one
    outcome. Outcomes of probability 0 are left out.

    Returns:
        Of each outcome: its row, in rising order; its probability mean_t p_t; the weights p_t / sum_t p_t of the T draws.
    """
    joint = draws / len(draws)
    if coverage < 1:
        ordered, labels = joint.sum(0).sort(1, descending=True)
        likely = torch.zeros_like(ordered, dtype=torch.bool).scatter(1, labels, ordered.cumsum(1) - ordered < coverage)
        rest = joint.masked_fill(likely, 0).sum(2, keepdim=True)
        joint = torch.cat([joint.masked_fill(~likely, 0), rest], 2)
    mass = joint.sum(0)
    row, label = torch.nonzero(mass > 0, as_tuple=True)
    mass = mass[row, label]
    return row, mass, (joint[:, row, label] / mass).T


def predictive_change(
    draws: Float[Tensor, "T n C"], targets: Float[Tensor, "T E C"], reverse: bool = False, coverage: float = 1.0
) -> Float[Tensor, "n E"]:
    """Return, in nats, how far knowing the label of each row is expected to move the prediction at each target.

    With m = mean_t p_t at a target and q its mean under the weights an outcome leaves: the expectation over outcomes of
    KL(q, m), which is the mutual information of both labels; of KL(m, q) with `reverse`. Coverage c < 1 joins unlikely labels on
    both sides (see `outcomes`), half of 1 - c each, which loses at most (1 - c) log T of KL(q, m). O(outcomes of rows x T x
    outcomes of targets) time, in pieces of `SIDE` by `SIDE`.
    """
    row, mass, weights = outcomes(draws, (1 + coverage) / 2)
    target, share, ratios = outcomes(targets, (1 + coverage) / 2)  # m, and p_t / (T m)
    pieces = list(zip(target.split(SIDE), share.unsqueeze(1).split(SIDE), (len(targets) * ratios).split(SIDE), strict=True))
    change = draws.new_zeros(draws.shape[1], targets.shape[1])
    for rows, masses, parts in zip(row.split(SIDE), mass.split(SIDE), weights.split(SIDE), strict=True):
        gained = draws.new_zeros(targets.shape[1], len(rows))
        for where, shares, piece in pieces:
            ratio = piece @ parts.T  # q / m
            logs = _log(ratio, torch.empty_like(ratio))
            logs = logs if reverse else logs.mul_(ratio)
            beyond = ratio.sub_(1)  # adds to nothing, but without it every term is of first order, and their sum of second
            moved = torch.sub(beyond, logs, out=logs) if reverse else logs.sub_(beyond)
            gained.index_add_(0, where, moved.mul_(shares))
        change.index_add_(0, rows, gained.mul_(masses).T)
    return change.clamp_(min=0)


def lazy_argmax(
    bounds: Float[Tensor, " n"], values: Callable[[Tensor], Tensor], lot: Int[Tensor, " n"], width: int = 64
) -> Int[Tensor, ""]:
    """Return the row of largest value, where `bounds` say what values are at most; only those of leaders are computed.

    What was computed is written into `bounds`. Ties fall by lot.

    Args:
        bounds: upper bounds; -inf for rows that may not be returned.
        values: maps rows to their values.
        lot: a random permutation.
        width: leaders computed at once; four times as many as long as a bound beyond them exceeds the best of them.
    """
    while True:
        ahead = bounds[lot].topk(min(width, len(bounds)))
        leaders = lot[ahead.indices]
        found = torch.where(ahead.values > -torch.inf, values(leaders), -torch.inf)
        bounds[leaders] = found
        if len(leaders) == len(bounds) or bool(found.max() >= ahead.values[-1]):
            return leaders[found.argmax()]
        width *= 4
