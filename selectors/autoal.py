"""AutoAL (ICML 2025, arXiv 2410.13853): a differentiable search for which strategy to trust on which sample.

The labelled set rehearses the campaign. One half, H1, trains FitNet; on the other, H2, every candidate strategy marks what it
would buy, and SearchNet learns per-sample weights over the candidates such that the samples they select together are those on
which FitNet's loss is high. The weights of the pool's samples then decide the real purchase (`SampleMix-v0`).

The paper halves the labelled set at random and lets the candidates mark a few dozen labelled samples as if they were the pool.
Such marks say nothing: they reach far below the tail that a strategy buys of a real pool, and labelled samples are a biased
one (`benchmarks/results/autoal.md` has the experiment). By default the halves are therefore split by age: H2 is what was bought
last, with the marks that the candidates really gave it, on the pool; H1 is what was bought before.

Equations are the paper's, in this form where its print is ambiguous or does not train (its released code has a zero gradient):

- the options `form="literal"`, `penalty="printed"` and `threshold="mixture"` are equations 5-6, 9 and 2-4 as printed;
- W = softmax over candidates of SearchNet's output, s_j = sum_k W_kj S_k(x_j): score first, then threshold (figure 1);
- S_bar = sigmoid(slope (s - v) / std(s)), v the upper quantile of s, both detached; slope is finite (1: a steeper one is flat
  where a single candidate marks, so that candidate is never judged);
- FitNet's losses are centred within the batch before they weigh S_bar (a baseline), in units of their deviation over H2 before
  the rotation: as FitNet learns the samples that are selected, the search comes to rest;
- the count regulariser (off by default: v is the quantile of the count already) is quadratic in the relative soft count, since
  the printed one (eq. 9) has no slope far from its optimum;
- a prior pulls the weights towards equality, with the force of `prior` held-out samples: a handful of labels does not decide;
- FitNet starts afresh with every split, so that the half it is judged on is unseen; SearchNet is kept.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv import ops
from alenv.ballot import Ballot
from alenv.campaign import weights_action
from alenv.heads import StageHead, ranking_loss
from alenv.mixing import mark_count
from alenv.model import TaskModel
from alenv.round import Round
from alenv.selector import Context, Observation, Selector, Transition

LONGEST_STEP = 1.0  # norm of a gradient that reaches SearchNet
FAINTEST = 1e-12  # deviation of scores: below it all weight is on candidates that marked nobody
FEWEST = 4  # held-out samples: two batches of a pair
Split = Literal["age", "random"]
Scorer = Literal["fit_net", "task_model"]
Form = Literal["combined", "literal"]
Threshold = Literal["quantile", "mixture"]
Penalty = Literal["quadratic", "printed"]
Quantile = Callable[[Tensor, float], Tensor]
CHOICES = {"split": Split, "scorer": Scorer, "form": Form, "threshold": Threshold, "penalty": Penalty}


class AutoAL(Selector):
    """SearchNet and FitNet, trained in turns on rehearsals within the labelled set.

    Args:
        votes: r: every candidate marks r x B of the pool. With 1, a single candidate's own set is bought.
        shares: every candidate buys the share of the batch that its marks weigh; else (the paper) the highest sums of weights are
            bought, which gives all to the heaviest candidate wherever marks do not coincide.
        split: of the labelled set: by "age" (there is nothing to learn from before the first purchase), or at "random" (the
            paper's).
        cycles: how often a round halves the labelled set, fits FitNet and rotates; they share the steps.
        fit_epochs: epochs of FitNet on H1 before the rotation, at most.
        fit_goal: mean training loss (nats) at which it stops earlier.
        steps: of the rotation FitNet, SearchNet, (loss prediction).
        batch: samples of a step, at most; B if that is smaller.
        fit_lr: of FitNet (Adam).
        search_lr: of SearchNet (SGD, momentum 0.9).
        loss_lr: of the loss-prediction step, on its module and SearchNet's body (SGD, momentum 0.9).
        slope: of the relaxation, in units of 1 / std(s).
        prior: of equal weights, in held-out samples; 0 for none.
        regularizer: weight of the count regulariser.
        penalty: its form: "quadratic" in the relative soft count, or "printed" (eq. 9; at weight 1 it overwhelms the search).
        search: train SearchNet by eq. 8 (the second step of the rotation).
        loss_prediction: train SearchNet's body to rank FitNet's losses (the third step).
        form: "combined" weighs the marks, then thresholds; "literal" thresholds each candidate's marks, then weighs (eq. 5-6).
        threshold: v is the empirical "quantile", or that of a Gaussian "mixture" (eq. 2-4).
        scorer: whose outputs the candidates see on a random H2: "fit_net" has not seen it; "task_model" (the released code's)
            was trained on it.
    """

    action_kind = "sample_mix"

    def __init__(
        self, votes: float = 1.0, shares: bool = True, split: Split = "age", cycles: int = 1, fit_epochs: int = 200,
        fit_goal: float = 0.2, steps: int = 60, batch: int = 32,
        fit_lr: float = 0.005, search_lr: float = 0.05, loss_lr: float = 0.005, slope: float = 1.0, prior: float = 0.1,
        regularizer: float = 0.0, penalty: Penalty = "quadratic", search: bool = True, loss_prediction: bool = True,
        form: Form = "combined", threshold: Threshold = "quantile", scorer: Scorer = "fit_net",
    ) -> None:  # fmt: skip
        chosen = {"split": split, "scorer": scorer, "form": form, "threshold": threshold, "penalty": penalty}
        for name, value in chosen.items():
            if value not in get_args(CHOICES[name]):
                raise ValueError(f"autoal: expected {name} to be one of {', '.join(get_args(CHOICES[name]))}, got '{value}'")
        if votes < 1 or cycles < 1 or slope <= 0 or prior < 0:
            got = f"votes={votes}, cycles={cycles}, slope={slope}, prior={prior}"
            raise ValueError(f"autoal: expected votes >= 1, cycles >= 1, slope > 0, prior >= 0, got {got}")
        self.votes, self.shares, self.split, self.cycles = votes, shares, split, cycles
        self.fit_epochs, self.fit_goal, self.steps, self.batch = fit_epochs, fit_goal, steps, batch
        self.fit_lr, self.search_lr, self.loss_lr = fit_lr, search_lr, loss_lr
        self.slope, self.prior, self.regularizer, self.penalty, self.scorer = slope, prior, regularizer, penalty, scorer
        self.search, self.loss_prediction, self.form, self.threshold = search, loss_prediction, form, threshold

    def begin(self, context: Context) -> None:
        """Make SearchNet."""
        super().begin(context)
        self._logs: dict[str, float] = {}
        self.memory = Memory(context.pool_size, len(context.strategies), context.trainer.device)
        self.loss_module: StageHead | None = None
        with context.streams.scoped("autoal/search_net"):
            self.search_net = context.net(len(context.strategies)).to(context.trainer.device)
        with torch.no_grad():  # nearly equal weights: no opinion before there is evidence
            self.search_net.linear.weight.mul_(0.1)
            self.search_net.linear.bias.zero_()

    def act(self, observation: Observation, ballot: Ballot) -> Any:
        """Rehearse on the labelled set, then return (N, S) actions: SearchNet's weights, equal ones while labels are too few."""
        round = ballot.round
        with self.context.trainer.threads(self.search_net):
            for cycle in range(self.cycles):
                rehearsal = self._rehearse(ballot, cycle)
                if rehearsal is not None:
                    self._rotate(*rehearsal, round.generator(f"autoal/visits/{cycle}"))
        weights = self.weights(round.inputs)
        if rehearsal is None:
            weights = torch.full_like(weights, 1 / len(ballot.names))
        self.memory.show(round.candidates, ballot.votes(mark_count(self.votes, ballot.budget, len(round))).T)
        self._logs |= {f"pool_weight/{name}": w for name, w in zip(ballot.names, weights.mean(0).tolist(), strict=True)}
        everyone = weights.new_ones(self.context.pool_size, len(ballot.names))
        return weights_action(everyone.index_copy(0, round.candidates, weights))

    def update(self, transition: Transition) -> dict[str, float]:
        """Return the search losses, the pool's mean weights, and each candidate's share of what was bought."""
        bought = transition.query.chosen_by
        self.memory.keep(transition.query.indices)
        shares = {f"bought/{name}": bought.count(name) / max(1, len(bought)) for name in self.context.strategies}
        logs, self._logs = self._logs, {}
        return logs | shares

    @torch.no_grad()
    def weights(self, inputs: Tensor) -> Float[Tensor, "n S"]:
        """Return SearchNet's weights for stored inputs: rows sum to one."""
        self.search_net.eval()
        return self.context.trainer.outputs(self.search_net, inputs).logits.softmax(1)

    def state_dict(self) -> dict[str, Any]:
        """Return SearchNet, the loss-prediction module and the marks of what was bought."""
        state: dict[str, Any] = {"search_net": dict(self.search_net.state_dict()), "memory": self.memory.state_dict()}
        if self.loss_module is not None:
            state |= {"stages": self._shapes, "loss_module": dict(self.loss_module.state_dict())}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the nets of `state`."""
        self.search_net.load_state_dict(state["search_net"])
        self.memory.load_state_dict(state["memory"])
        if "loss_module" in state:
            self._make_loss_module(state["stages"]).load_state_dict(state["loss_module"])

    def _rehearse(self, ballot: Ballot, cycle: int = 0) -> "tuple[TaskModel, list[Rehearsal]] | None":
        """Split the labelled set, fit FitNet on H1 and return it with the batches of H2; None if labels are too few."""
        round = ballot.round
        votes: Tensor | None = None
        if self.split == "age":
            second, votes = self._recent(round)
        else:
            second = split_halves(len(round.labels), round.generator(f"autoal/split/{cycle}"))[1]
        if len(second) < FEWEST:
            return None
        first = torch.nonzero(ops.mask_without(len(round.labels), second)).flatten()
        fit_net = self._fit(round, first)
        batches = []
        for part in cut(len(second), min(ballot.budget, self.batch), round.generator(f"autoal/batches/{cycle}")):
            rows = second[part]
            marks = self._mark(ballot, fit_net, rows, first) if votes is None else votes[part]
            share = float(marks.float().mean())
            batches.append(Rehearsal(rows, round.labeled_inputs[rows], round.labels[rows], marks, share))
        return fit_net, batches

    def _recent(self, round: Round) -> tuple[Int[Tensor, " h"], Bool[Tensor, "h K"]]:
        """Return the younger half of the labelled set, by position, and its marks; without those that were never marked."""
        row = torch.full((self.context.pool_size,), -1, dtype=torch.int64, device=round.device)
        row[round.labeled_indices] = torch.arange(len(round.labels), device=round.device)
        age = torch.tensor(round.pool.order, dtype=torch.int64, device=round.device)
        usable = age[(row[age] >= 0) & self.memory.known[age]][-(len(round.labels) // 2) :]
        return row[usable], self.memory.marks[usable]

    def _mark(self, ballot: Ballot, fit_net: TaskModel, rows: Int[Tensor, " B"], first: Tensor) -> Bool[Tensor, "B K"]:
        """Let the candidates mark rows of the labelled set as if they were the pool."""
        round = ballot.round
        unfit = [name for name, s in ballot.strategies.items() if any(need.startswith("aux:") for need in s.needs)]
        if unfit:
            raise ValueError(f"autoal: split=random rehearses on a net without the heads of {', '.join(unfit)}; use split=age")
        scorer = fit_net if self.scorer == "fit_net" else round.model
        marks = max(2, math.ceil(ballot.budget / self.context.pool_size * len(rows)))
        inside = round.within(round.labeled_indices[rows], round.labeled_indices[first], scorer)
        return ballot.on(inside, marks).votes(marks).T

    def _fit(self, round: Round, rows: Int[Tensor, " h"]) -> TaskModel:
        """Return FitNet after its epochs on H1."""
        streams, trainer = self.context.streams, self.context.trainer
        inputs, targets = round.labeled_inputs[rows], round.labels[rows]
        with streams.scoped("autoal/fit_net", round.index):
            net = trainer.place(self.context.net(round.num_classes), inputs)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.fit_lr)
        noise, order = round.generator("autoal/fit_noise"), round.generator("autoal/fit_order")
        net.train()
        for _ in range(self.fit_epochs):
            lot = torch.randperm(len(rows), generator=order, device=round.device)
            total = torch.zeros((), device=round.device)
            for part in lot.tensor_split(math.ceil(len(rows) / trainer.batch_size)):
                losses = self._losses(net, inputs[part], targets[part], noise)
                optimizer.zero_grad(set_to_none=True)
                losses.mean().backward()
                optimizer.step()
                total += losses.detach().sum()
            if float(total) < self.fit_goal * len(rows):
                break
        return net.eval()

    def _losses(
        self, net: TaskModel, inputs: Tensor, targets: Tensor, noise: torch.Generator | None = None
    ) -> Float[Tensor, " B"]:
        """Return FitNet's cross-entropy per sample; with its dropout where `noise` is given."""
        with self.context.trainer.autocast(inputs):
            h = net.features(inputs)
            logits = net.head(h if noise is None else net.dropped(h, noise)).float()
        return F.cross_entropy(logits, targets, reduction="none")

    def _rotate(self, fit_net: TaskModel, batches: "list[Rehearsal]", generator: torch.Generator) -> None:
        """Train in turns: FitNet on batch n + 1 (eq. 7), SearchNet on batch n (eq. 8), then whatever predicts losses."""
        fit = torch.optim.Adam(fit_net.parameters(), lr=self.fit_lr)
        search = torch.optim.SGD(self.search_net.parameters(), lr=self.search_lr, momentum=0.9)
        predict = self._loss_optimizer(batches[0].inputs) if self.loss_prediction else None
        start = torch.cat([self._judge(fit_net, batch) for batch in batches])
        scale, prior = start.std(unbiased=False).clamp(min=1e-6), self.prior / len(start)
        logs: dict[str, list[Tensor]] = {"loss": [], "loss/fit": [], "loss/prediction": []}
        order = visits(len(batches), self.steps // self.cycles, generator)
        for step, (here, following) in enumerate(order):
            if step % 3 == 0:
                logs["loss/fit"].append(self._step_fit(fit_net, batches[following], fit))
                losses = self._judge(fit_net, batches[here])  # until FitNet moves again
            elif step % 3 == 1 and self.search:
                logs["loss"].append(self._step_search(batches[here], losses, search, scale, prior))
            elif step % 3 == 2 and predict is not None:
                logs["loss/prediction"].append(self._step_predict(batches[here], losses, predict))
        self._logs = {name: float(torch.stack(values).mean()) for name, values in logs.items() if values}

    @torch.no_grad()
    def _judge(self, fit_net: TaskModel, batch: "Rehearsal") -> Float[Tensor, " B"]:
        """Return FitNet's losses on a batch, without noise."""
        return self._losses(fit_net.eval(), batch.inputs, batch.targets)

    def _step_fit(self, fit_net: TaskModel, batch: "Rehearsal", optimizer: torch.optim.Optimizer) -> Tensor:
        fit_net.train()
        self.search_net.eval()
        with torch.no_grad():
            selected = self._selected(batch, self._logits(batch))
        loss = fit_loss(selected, self._losses(fit_net, batch.inputs, batch.targets))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def _step_search(
        self, batch: "Rehearsal", losses: Tensor, optimizer: torch.optim.Optimizer, scale: Tensor, prior: float
    ) -> Tensor:
        self.search_net.train()
        logits = self._logits(batch)
        selected = self._selected(batch, logits)
        loss = search_loss(selected, losses, scale) + self.regularizer * PENALTIES[self.penalty](
            selected, batch.share * len(selected)
        )
        loss = loss + prior * departure(logits)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # where a batch's scores nearly tie, 1 / std(s) is huge: the direction counts, not the length
        torch.nn.utils.clip_grad_norm_(self.search_net.parameters(), LONGEST_STEP)
        optimizer.step()
        return loss.detach()

    def _step_predict(self, batch: "Rehearsal", losses: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        self.search_net.train()
        assert self.loss_module is not None
        with self.context.trainer.autocast(batch.inputs):
            predicted = self.loss_module(self.search_net.stages(batch.inputs)[0]).float()
        loss = ranking_loss(predicted[:, 0], losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # the gradient grows with the product of the layers it passes: without a bound, noise can blow the body up over rounds
        torch.nn.utils.clip_grad_norm_([*self.loss_module.parameters(), *self.search_net.body.parameters()], LONGEST_STEP)
        optimizer.step()
        return loss.detach()

    def _loss_optimizer(self, inputs: Tensor) -> torch.optim.Optimizer:
        """Return the optimiser of the loss-prediction module AND of SearchNet's body, or it could not influence a query."""
        if self.loss_module is None:
            with torch.no_grad():
                stages, _ = self.search_net.eval().stages(inputs[:1])
            self._make_loss_module([list(stage.shape[1:]) for stage in stages])
        assert self.loss_module is not None
        parameters = [*self.loss_module.parameters(), *self.search_net.body.parameters()]
        return torch.optim.SGD(parameters, lr=self.loss_lr, momentum=0.9)

    def _make_loss_module(self, shapes: list[list[int]]) -> StageHead:
        self._shapes = shapes
        with self.context.streams.scoped("autoal/loss_module"):
            self.loss_module = StageHead(shapes).to(self.context.trainer.device)
        return self.loss_module

    def _logits(self, batch: "Rehearsal") -> Float[Tensor, "B K"]:
        with self.context.trainer.autocast(batch.inputs):
            return self.search_net(batch.inputs).float()

    def _selected(self, batch: "Rehearsal", logits: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
        share, quantile = batch.share, QUANTILES[self.threshold]
        if self.form == "literal":
            return literal_selection(logits, batch.votes, share, quantile)
        return soft_selection(combined_scores(logits.softmax(1), batch.votes), share, self.slope, quantile)


class Rehearsal(NamedTuple):
    """One mini-batch of H2 with the candidates' marks, computed once a round.

    Attributes:
        rows: (B,) positions in the labelled set; every other array is in this order.
        inputs: (B, ...) as stored.
        targets: (B,).
        votes: (B, K) S_k(x_j).
        share: of the batch that a candidate marks, on average.
    """

    rows: Int[Tensor, " B"]
    inputs: Tensor
    targets: Int[Tensor, " B"]
    votes: Bool[Tensor, "B K"]
    share: float


class Memory:
    """Which candidates marked a sample when it was bought.

    Attributes:
        known: (N,) bought in a round that was watched.
        marks: (N, K) by whom; of no meaning where it is not known.
    """

    def __init__(self, pool_size: int, strategies: int, device: torch.device) -> None:
        self.known = torch.zeros(pool_size, dtype=torch.bool, device=device)
        self.marks = torch.zeros(pool_size, strategies, dtype=torch.bool, device=device)

    def show(self, candidates: Int[Tensor, " U"], marks: Bool[Tensor, "U K"]) -> None:
        """Look at the marks of everybody who can be bought."""
        self.marks[candidates] = marks

    def keep(self, indices: Int[Tensor, " B"]) -> None:
        """Remember those of what was bought."""
        self.known[indices] = True

    def state_dict(self) -> dict[str, Tensor]:
        """Return indices and marks of what is known."""
        indices = torch.nonzero(self.known).flatten()
        return {"indices": indices, "marks": self.marks[indices]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self.known[state["indices"]] = True
        self.marks[state["indices"]] = state["marks"]


def split_halves(size: int, generator: torch.Generator) -> tuple[Int[Tensor, " a"], Int[Tensor, " b"]]:
    """Return two random halves of `size` positions; an odd one goes to the first."""
    lot = torch.randperm(size, generator=generator, device=generator.device)
    return lot[: size - size // 2], lot[size - size // 2 :]


def cut(size: int, budget: int, generator: torch.Generator) -> tuple[Int[Tensor, " B"], ...]:
    """Cut `size` rows at random into at least two batches of one even size, at most the budget; up to a batch is left over."""
    each = max(2, min(budget, size // 2) // 2 * 2)
    lot = torch.randperm(size, generator=generator, device=generator.device)
    return lot[: size // each * each].split(each)


def visits(batches: int, steps: int, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """Yield pairs (batch n, batch n + 1): shuffled passes over the batches, one pair for each turn of three steps."""
    lot: list[int] = []
    for step in range(steps):
        if step % 3 == 0:
            lot = lot[1:]
            while len(lot) < 2:
                fresh = torch.randperm(batches, generator=generator, device=generator.device).tolist()
                lot += fresh if not lot or fresh[0] != lot[-1] else fresh[::-1]
        yield lot[0], lot[1]


def combined_scores(weights: Float[Tensor, "B K"], votes: Bool[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Return s_j = sum_k W_kj S_k(x_j)."""
    return (weights * votes).sum(1)


def soft_selection(
    scores: Float[Tensor, " B"], share: float, slope: float, quantile: Quantile = ops.upper_quantile
) -> Float[Tensor, " B"]:
    """Return S_bar: how far each sample is among the upper `share` of scores, in (0, 1); scale-free, v and std are detached.

    Scores that are equal but for rounding select nobody in particular: 1/2 each, without a gradient.
    """
    fixed = scores.detach()
    spread = fixed.std(unbiased=False)
    steepness = torch.where(spread > (1e-4 * fixed.abs().max()).clamp(min=FAINTEST), slope / spread, 0.0)
    return torch.sigmoid(steepness * (scores - quantile(fixed, share)))


def literal_selection(
    logits: Float[Tensor, "B K"], votes: Bool[Tensor, "B K"], share: float, quantile: Quantile = ops.upper_quantile
) -> Float[Tensor, " B"]:
    """Return S_bar of eq. 5-6 as printed: sum over k of sigmoid(Theta_k) (S_k - v_k) W_k, Theta and W from SearchNet's output.

    It is no selection between 0 and 1; lambda, which has no value in the paper, is 1.
    """
    marks = votes.to(logits.dtype)
    thresholds = torch.stack([quantile(column, share) for column in marks.unbind(1)])
    return (torch.sigmoid(logits) * (marks - thresholds) * logits.softmax(1)).sum(1)


def count_penalty(selected: Float[Tensor, " B"], target: float | int) -> Float[Tensor, ""]:
    """Return ((soft count - target) / target)^2."""
    return ((selected.sum() - target) / target).square()


def printed_penalty(selected: Float[Tensor, " B"], target: float | int) -> Float[Tensor, ""]:
    """Return -L_re of eq. 9 on the soft count: 1/2 tanh(|count - target| / 4), in [0, 1/2); flat beyond a distance of 20."""
    return 0.5 * torch.tanh((selected.sum() - target).abs() / 4)


QUANTILES: dict[str, Quantile] = {"quantile": ops.upper_quantile, "mixture": ops.mixture_upper_quantile}
PENALTIES = {"quadratic": count_penalty, "printed": printed_penalty}


def departure(logits: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Return the mean Kullback-Leibler divergence of the weights, softmax(logits), from equal ones, in nats.

    From logarithms: the gradient of p log p is infinite at a weight that has vanished.
    """
    logs = logits.log_softmax(1)
    return math.log(logits.shape[1]) + (logs.exp() * logs).sum(1).mean()


def search_loss(selected: Float[Tensor, " B"], losses: Float[Tensor, " B"], scale: float | Tensor = 1.0) -> Float[Tensor, ""]:
    """Return eq. 8's main term, to be minimised: minus the mean of S_bar x FitNet's loss (centred, over `scale`, detached)."""
    fixed = losses.detach()
    return -(selected * (fixed - fixed.mean()) / scale).mean()


def fit_loss(selected: Float[Tensor, " B"], losses: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return eq. 7 without its regulariser, which is constant for FitNet: mean of (detached) S_bar x loss."""
    return (selected.detach() * losses).mean()
