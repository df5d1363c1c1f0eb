"""Bandits over strategies: their arithmetic, and two templates, arms that are strategies and experts that advise on samples."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alenv.ballot import Ballot
from alenv.campaign import weights_action
from alenv.selector import Context, Observation, Selector, Transition
from alenv.strategy import best_first


def unit(reward: float, low: float, high: float) -> float:
    """Return `reward` scaled from [low, high] to [0, 1]; as it is where the range has no end."""
    return (reward - low) / (high - low) if math.isfinite(high - low) else reward


def smoothed(log_weights: Float[Tensor, " K"], gamma: float) -> Float[Tensor, " K"]:
    """Return (1 - gamma) w / sum w + gamma / K: the probabilities of EXP3, at least gamma / K each."""
    return (1 - gamma) * log_weights.softmax(0) + gamma / len(log_weights)


def exploration(arms: int, choices: int, horizon: int) -> float:
    """Return gamma = min(1, sqrt(arms ln(choices) / ((e - 1) horizon))) of Auer et al. 2002, corollary 3.2 and theorem 7.1."""
    return min(1.0, math.sqrt(arms * math.log(choices) / ((math.e - 1) * max(1, horizon))))


def rank_advice(ballot: Ballot, depth: int, alpha: float = 0.1, beta: float = 10.0) -> Float[Tensor, "K U"]:
    """Return one law per strategy, proportional to exp(beta exp(-alpha rank)); ranks beyond `depth` count as infinite."""
    advice = torch.zeros(len(ballot.names), len(ballot.round), dtype=torch.float64, device=ballot.round.device)
    for k in range(len(advice)):
        order = ballot.wish(k, depth)
        rank = torch.arange(len(order), dtype=torch.float64, device=order.device)
        advice[k, order] = beta * torch.exp(-alpha * rank)
    return advice.softmax(1)


def score_advice(ballot: Ballot, beta: float = 100.0) -> Float[Tensor, "K U"]:
    """Return one law per strategy, proportional to exp(-beta (1 - score)), scores scaled to [0, 1]."""
    return (beta * torch.stack([ballot.score(k) for k in range(len(ballot.names))]).double()).softmax(1)


def effective_pool(advice: Float[Tensor, "K U"], least: int, alpha: float = 0.05) -> Bool[Tensor, " U"]:
    """Return who is advised with at least `alpha` by somebody; `alpha` is halved until these are `least` candidates."""
    strongest = advice.max(0).values
    last = strongest.topk(min(max(1, least), len(strongest))).values[-1]
    halvings = torch.ceil(torch.log2(alpha / last)).clamp(min=0)
    return strongest >= torch.minimum(alpha * torch.exp2(-halvings), last)


def after_earlier(columns: Float[Tensor, "K B"]) -> Float[Tensor, "K B"]:
    """Return the probability of each draw given that the earlier ones are gone: a_b / (1 - sum of a before b)."""
    left = 1 - columns.cumsum(1) + columns
    return torch.where(left > 1e-9, columns / left.clamp(min=1e-9), 0).clamp(max=1)


def dirichlet(concentration: Float[Tensor, "*rows C"], generator: torch.Generator) -> Float[Tensor, "*rows C"]:
    """Return a draw from the Dirichlet law of each row (two columns: a Beta law), as normalised Gamma variables."""
    gammas = torch._standard_gamma(concentration, generator=generator)
    return gammas / gammas.sum(-1, keepdim=True)


def highest(values: Float[Tensor, " K"], generator: torch.Generator) -> int:
    """Return the arm of the largest value; ties fall by lot."""
    return int(best_first(values, generator, 1))


class Bandit(Selector):
    """What bandits share: state in named tensors, and a standing of the strategies that is logged.

    Attributes:
        learned: names of the tensors that are its state.
        quality: what `standing` is called in logs.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    quality: ClassVar[str] = "weight"

    @abstractmethod
    def standing(self) -> Float[Tensor, " K"]:
        """Return what it thinks of each strategy; finite, logged after every round."""

    def logged(self) -> dict[str, float]:
        """Return `standing` by name."""
        return {f"{self.quality}/{s}": v for s, v in zip(self.context.strategies, self.standing().tolist(), strict=True)}

    def scaled(self, reward: float) -> float:
        """Return a reward scaled to [0, 1]."""
        return unit(reward, *self.context.reward_range)

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned."""
        return {name: getattr(self, name).clone() for name in self.learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name in self.learned:
            setattr(self, name, state[name].to(getattr(self, name)))


class ArmBandit(Bandit):
    """A bandit that pulls one strategy a round; subclasses say which, and what they learn from the reward in [0, 1]."""

    action_kind = "pick"

    def begin(self, context: Context) -> None:
        """Forget everything."""
        super().begin(context)
        self.arms = len(context.strategies)

    @abstractmethod
    def pull(self, generator: torch.Generator) -> int:
        """Return the arm of this round."""

    @abstractmethod
    def learn(self, arm: int, reward: float) -> None:
        """Take the reward, in [0, 1], of `arm`."""

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Return the strategy to use."""
        return self.pull(self.context.streams.on("cpu")(f"selector/{type(self).__name__}", ballot.round.index))

    def update(self, transition: Transition) -> dict[str, float]:
        """Learn from the reward."""
        self.learn(int(transition.action), self.scaled(transition.reward))
        return self.logged()


class Advice(NamedTuple):
    """What the experts said in one round.

    Attributes:
        candidates: (U,) pool indices, ascending.
        laws: (K, U) one law per expert, zero outside the effective pool.
        gamma: share of exploration.
        arms: n, the size of the effective pool.
    """

    candidates: Int[Tensor, " U"]
    laws: Float[Tensor, "K U"]
    gamma: float
    arms: int


class ExpertBandit(Bandit):
    """EXP4 (Auer, Cesa-Bianchi, Freund & Schapire 2002, section 7): the arms are candidates, the experts are strategies.

    With n arms in the effective pool (who is advised with at least `alpha` by some expert: COMB's device) and advice a_k, a law
    over them, samples are drawn from

        p_i = (1 - gamma) sum_k w_k a_k(i) / sum w + gamma / n

    and every one bought, q, with reward r in [0, 1] updates w_k <- w_k exp(gamma / n  a_k(q) r / p_q). A batch is drawn without
    replacement: p_q and a_k(q) are those given the earlier draws of the batch, and r is the round's.

    Subclasses say how strategies become advice. O(K U) a round beside the strategies.
    """

    action_kind = "sample_draw"
    learned: ClassVar[tuple[str, ...]] = ("log_weights",)
    alpha: float = 0.05
    gamma: float = 0.1

    def begin(self, context: Context) -> None:
        """Start from equal weights."""
        super().begin(context)
        self.experts = len(context.strategies)
        self.log_weights = torch.zeros(self.experts, dtype=torch.float64)
        self._advice: Advice | None = None

    @abstractmethod
    def advise(self, ballot: Ballot) -> Float[Tensor, "K U"]:
        """Return one law over the candidates per strategy, in float64."""

    def explore(self, arms: int) -> float:
        """Return gamma for a round of n = `arms` arms."""
        del arms
        return self.gamma

    def standing(self) -> Float[Tensor, " K"]:
        """Return w / sum w."""
        return self.log_weights.softmax(0)

    def act(self, observation: Observation, ballot: Ballot) -> Any:
        """Return the masses (N, S) that the experts put on the samples; their sum over experts is p."""
        laws = self.advise(ballot)
        pool = effective_pool(laws, ballot.budget, self.alpha)
        laws = laws * pool / (laws * pool).sum(1, keepdim=True)
        arms = int(pool.sum())
        gamma = self.explore(arms)
        self._advice = Advice(ballot.round.candidates, laws, gamma, arms)
        weights = (1 - gamma) * self.standing().to(laws)
        mass = weights.unsqueeze(1) * laws + gamma * pool / (arms * self.experts)
        whole = mass.new_zeros(self.context.pool_size, self.experts).index_copy(0, ballot.round.candidates, mass.T)
        return weights_action(whole.flatten()).reshape(whole.shape)

    def update(self, transition: Transition) -> dict[str, float]:
        """Apply the update for every sample bought."""
        assert self._advice is not None
        candidates, laws, gamma, arms = self._advice
        advised = after_earlier(laws[:, torch.searchsorted(candidates, transition.query.indices)])
        gains = (self.scaled(transition.reward) * advised / transition.query.propensity).sum(1).to(self.log_weights)
        self.learn(gains, gamma / arms, transition.record.round)
        return self.logged()

    def learn(self, gains: Float[Tensor, " K"], rate: float, round: int) -> None:
        """Take the estimated reward of each expert, summed over the purchases of a round; `rate` is gamma / n."""
        del round
        self.log_weights = self.log_weights + rate * gains
        self.log_weights = self.log_weights - self.log_weights.max()
