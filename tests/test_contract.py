"""The public contract, over everything found in `strategies/` and `selectors/`."""

import itertools

import pytest
import torch

from alenv import library
from alenv.campaign import Plan
from alenv.checks import check_selector, check_strategy
from alenv.env import ActiveLearningEnv
from alenv.oracle import Oracle
from alenv.problem import assemble
from alenv.round import Round
from alenv.runner import Runner
from alenv.selector import Selector
from alenv.streams import Streams

STRATEGIES, SELECTORS = library.names("strategy"), library.names("selector")
QUICK = {"autoal": {"fit_epochs": 3, "steps": 9}}


def selector_named(name):
    return library.build("selector", name, **QUICK.get(name, {}))


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_keeps_the_contract(name):
    check_strategy(library.build("strategy", name))


@pytest.mark.parametrize("name", SELECTORS)
def test_selector_keeps_the_contract(name):
    check_selector(selector_named(name))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_strategy_keeps_the_contract_on_the_gpu(name):
    check_strategy(library.build("strategy", name), "cuda")


class Poisoned(Oracle):
    """Raises when a label is asked for that is not being bought."""

    def begin(self, task, streams, directory=None):
        self.task, self.targets = task, task.targets.clone()
        task.targets.fill_(-(10**6))  # whoever reads them gets nonsense that no pool accepts
        self.expected = None
        self.sold = set()

    def label(self, indices):
        assert self.expected is not None, "a label was read before it was bought"
        assert indices.tolist() == self.expected
        assert not self.sold & set(indices.tolist()), "a label was bought twice"
        self.sold |= set(indices.tolist())
        return self.targets[indices].tolist()


def poisoned_environment(**arguments):
    """An environment whose oracle answers only what the environment has decided to buy."""
    oracle = Poisoned()
    env = ActiveLearningEnv(oracle=oracle, initial=24, batch=8, rounds=2, **arguments)
    ask = env.buy

    def buy(query):
        oracle.expected = query.indices.tolist()
        answer = ask(query)
        oracle.expected = None
        return answer

    env.buy = buy
    return env


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("action", ["pick", "mix", "sample_mix"])
def test_no_strategy_reads_a_hidden_label(name, action):
    env = poisoned_environment(strategies=[name], action=action)
    env.reset(seed=0)
    for _ in range(2):
        env.step(0 if action == "pick" else env.action_space.sample() * 0)


@pytest.mark.parametrize("name", SELECTORS)
def test_no_selector_reads_a_hidden_label(name):
    selector: Selector = selector_named(name)
    plan = Plan(initial=24, batch=8, rounds=2)
    spec = selector.candidates if selector.candidates is not None else "autoal7"
    oracle = Poisoned()
    runner = Runner(assemble(strategies=spec, required=selector.requires, plan=plan, oracle=oracle, device="cpu"), selector)
    ask = runner.env.buy

    def buy(query):
        oracle.expected = query.indices.tolist()
        answer = ask(query)
        oracle.expected = None
        return answer

    runner.env.buy = buy
    run = runner.run()
    assert run.summary["bought"] == 40


def fair_round(seed):
    """A round with everything a strategy may need, noisy enough for all of them to differ."""
    generator = Streams(seed)("round")
    embeddings = torch.randn(120, 6, generator=generator)
    weight, bias = 1.2 * torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    logits = embeddings @ weight.T + bias
    noise = torch.randn(10, 120, 4, generator=generator) * torch.rand(120, 1, generator=generator)
    return Round.from_arrays(
        logits=logits, embeddings=embeddings, head=(weight, bias), labels=torch.arange(12) % 4,
        labeled_embeddings=torch.randn(12, 6, generator=generator), mc_probs=(logits + noise).softmax(2), seed=seed,
    )  # fmt: skip


def test_no_two_strategies_always_agree():
    picks = {
        name: [frozenset(library.build("strategy", name).select(fair_round(seed), 12).tolist()) for seed in range(4)]
        for name in STRATEGIES
        if not any(need.startswith(("aux:", "features:")) for need in library.build("strategy", name).needs)
    }
    agreeing = [pair for pair in itertools.combinations(picks, 2) if picks[pair[0]] == picks[pair[1]]]
    assert not agreeing
