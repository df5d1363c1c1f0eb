"""The checks themselves: a breaker of each rule is caught, and told which rule it broke."""

import copy

import pytest
import torch

from alenv.checks import ContractViolation, check_selector, check_strategy
from alenv.heads import Head
from alenv.selector import Selector
from alenv.strategy import ScoreStrategy, Strategy


class Good(ScoreStrategy):
    needs = frozenset({"probs", "embeddings"})

    def score(self, round):
        return round.embeddings[:, 0] - round.probs.max(1).values


class Stochastic(ScoreStrategy):
    needs = frozenset({"probs"})

    def score(self, round):
        return round.probs.max(1).values + torch.rand(len(round), generator=round.generator("noise"))


class WithHead(ScoreStrategy):
    needs = frozenset({"aux:toy"})

    def heads(self):
        def build(shapes, classes, labeled):
            layer = torch.nn.Linear(shapes[-1][0], 1)
            layer_on_stages = torch.nn.Module()
            layer_on_stages.layer = layer
            layer_on_stages.forward = lambda stages: layer(stages[-1])
            return layer_on_stages

        return (Head("toy", build, lambda batch: batch.outputs.square().mean()),)

    def score(self, round):
        return round.aux["toy"][:, 0]


def broken(select=None, score=None, needs=(), base=Strategy):
    body = {"needs": frozenset(needs)}
    if select is not None:
        body["select"] = select
    if score is not None:
        body["score"] = score
    return type("Broken", (ScoreStrategy if score else base,), body)()


def global_draw(self, round, budget):
    return torch.randperm(len(round))[:budget]


def changes_model(self, round, budget):
    round.model.linear.weight.add_(1)
    return torch.arange(budget)


def leaves_train_mode(self, round, budget):
    round.model.train()
    return torch.arange(budget)


def changes_probs(self, round, budget):
    round.probs.zero_()
    return torch.arange(budget)


def relabels(self, round, budget):
    round.pool.labels[round.candidates[0]] = 0
    return torch.arange(budget)


CALLS = []


def remembers(self, round, budget):
    CALLS.append(0)
    return (torch.arange(budget) + len(CALLS)) % len(round)


BREAKERS = [
    (broken(lambda self, round, budget: torch.zeros(budget, dtype=torch.int64)), "repeat"),
    (broken(lambda self, round, budget: torch.arange(budget) + len(round)), "expected positions in"),
    (broken(lambda self, round, budget: torch.arange(max(1, budget - 1))), "expected"),
    (broken(lambda self, round, budget: list(range(budget))), "integer tensor"),
    (broken(lambda self, round, budget: torch.arange(budget).float()), "integer tensor"),
    (broken(global_draw), "generator"),
    (broken(remembers), "one seed, one result"),
    (broken(changes_model, needs={"model"}), "changes nothing"),
    (broken(leaves_train_mode, needs={"model"}), "changes nothing"),
    (broken(changes_probs, needs={"probs"}), "changes nothing"),
    (broken(relabels, needs={"pool"}), "."),
    (broken(lambda self, round, budget: torch.arange(budget), needs={"telepathy"}), "unknown needs"),
    (broken(lambda self, round, budget: round.embeddings[:, 0].argsort()[:budget]), "reads"),
    (broken(score=lambda self, round: round.probs[:3, 0], needs={"probs"}), "one score per candidate"),
    (broken(score=lambda self, round: round.probs[:, 0] * float("nan"), needs={"probs"}), "NaN"),
    (broken(score=lambda self, round: torch.arange(len(round)).float()), "order of candidates"),
]


@pytest.mark.parametrize("strategy", [Good(), Stochastic(), WithHead()], ids=lambda s: type(s).__name__)
def test_a_proper_strategy_passes(strategy):
    assert check_strategy(strategy) is None


@pytest.mark.parametrize(("strategy", "said"), BREAKERS, ids=[str(i) for i in range(len(BREAKERS))])
def test_a_breaker_is_caught_and_told(strategy, said):
    with pytest.raises(ContractViolation, match=said), torch.random.fork_rng():
        check_strategy(strategy)


def test_scores_that_differ_by_block_are_not_pointwise():
    class Ranks(ScoreStrategy):
        needs = frozenset({"probs"})
        pointwise = True

        def score(self, round):
            return round.probs[:, 0] - round.probs[:, 0].mean()

    with pytest.raises(ContractViolation, match="pointwise"):
        check_strategy(Ranks())


def test_unsaveable_state_is_caught():
    class Opaque(Good):
        def state_dict(self):
            return {"thing": object()}

    with pytest.raises(ContractViolation, match="state"):
        check_strategy(Opaque())


class GoodSelector(Selector):
    """Takes the strategy whose last reward was best; remembers properly."""

    action_kind = "pick"

    def begin(self, context):
        super().begin(context)
        self.values = torch.zeros(len(context.strategies))
        self.last = 0

    def act(self, observation, ballot):
        noise = 0.1 * torch.rand(len(self.values), generator=self.context.streams("good", ballot.round.index))
        self.last = int((self.values + noise).argmax())
        return self.last

    def update(self, transition):
        self.values[self.last] = transition.reward
        return {"value": float(self.values[self.last])}

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values = state["values"].clone()


def variant(**methods):
    return type("Variant", (GoodSelector,), methods)()


def keeps_memory(self, context):
    Selector.begin(self, context)
    if not hasattr(self, "values"):
        self.values = torch.zeros(len(context.strategies))


def draws_globally(self, observation, ballot):
    return int(torch.randint(len(self.values), ()))


def spoils_model(self, observation, ballot):
    ballot.round.model.linear.weight.mul_(0)
    return 0


SELECTOR_BREAKERS = [
    (variant(begin=keeps_memory), "begin"),
    (variant(act=draws_globally), "global generators"),
    (variant(act=spoils_model), "changes nothing"),
    (variant(act=lambda self, observation, ballot: 99), "action space"),
    (variant(state_dict=lambda self: {"values": torch.zeros(3)}), "state_dict is complete"),
    (variant(update=lambda self, transition: {"loss": float("nan")}), "finite"),
    (variant(state_dict=lambda self: {"values": self.values, "f": lambda: 0}), "state"),
]


def test_a_proper_selector_passes():
    assert check_selector(GoodSelector()) is None


@pytest.mark.parametrize(("selector", "said"), SELECTOR_BREAKERS, ids=[s for _, s in SELECTOR_BREAKERS])
def test_a_breaking_selector_is_caught_and_told(selector, said):
    with pytest.raises(ContractViolation, match=said), torch.random.fork_rng():
        check_selector(copy.deepcopy(selector))
