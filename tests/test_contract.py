"""The public contract, over everything found in `strategies/` and `selectors/`."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch

from alenv import library
from alenv.agents import Agent, StrategyNet, save_agent
from alenv.campaign import Plan
from alenv.checks import check_selector, check_strategy
from alenv.env import ActiveLearningEnv
from alenv.model import TaskModel
from alenv.oracle import Oracle
from alenv.pool import OUTSIDE, Pool
from alenv.problem import assemble
from alenv.round import Purchase, Round
from alenv.runner import Runner
from alenv.selector import Selector
from alenv.streams import Streams
from alenv.trainer import Trainer

STRATEGIES, SELECTORS = library.names("strategy"), library.names("selector")
QUICK = {
    "autoal": {"fit_epochs": 3, "steps": 9}, "selectal": {"repeats": 1, "random_draws": 1}, "sample_oracle": {"tau": 2},
}  # fmt: skip
UNTRAINED = {"dqn": 1, "sac": 2}  # selectors without an agent of their own, and what its net says of each strategy
SMALL = {"subsample": {"size": 40}, "prefilter": {"factor": 3}}  # so that they leave something out of a small pool


def selector_named(name):
    if name not in UNTRAINED:
        return library.build("selector", name, **QUICK.get(name, {}))
    with tempfile.TemporaryDirectory() as folder, Streams(0).scoped("agent"):
        save_agent(Path(folder) / "agent.safetensors", Agent(StrategyNet(UNTRAINED[name]), name, {}))
        return library.build("selector", name, path=folder)


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
    asked = [need.partition(":")[2] for need in library.build("strategy", name).needs if need.startswith("features:")]
    env = poisoned_environment(strategies=[name], action=action, features=dict.fromkeys(asked, "raw"))
    env.reset(seed=0)
    for _ in range(2):
        env.step(0 if action == "pick" else env.action_space.sample() * 0)


@pytest.mark.parametrize("name", [name for name in SELECTORS if not selector_named(name).oracle])
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


def fair_round(seed, needs=(), heads=()):
    """A round with everything a strategy may need, noisy enough for all of them to differ."""
    streams = Streams(seed)
    generator = streams("round")
    inputs = torch.randn(150, 6, generator=generator)  # 12 labelled, 18 discarded, 120 candidates

    def net(num_outputs=4):
        return TaskModel(torch.nn.Identity(), 6, num_outputs, dropout=0.3, companion=net)

    trainer = Trainer(device="cpu")
    pool = Pool(len(inputs), 4)
    pool.reveal(torch.arange(30), [i % 4 if i < 12 else (OUTSIDE if i % 2 else None) for i in range(30)])
    with streams.scoped("init"):
        model = net()
        for head in heads:
            model.aux[head.name] = head.build([inputs.shape[1:]], 4, 12)
    with torch.no_grad():
        model.linear.weight.copy_(1.2 * torch.randn(4, 6, generator=generator))
        model.linear.bias.copy_(torch.randn(4, generator=generator))
        noise = torch.randn(10, 120, 4, generator=generator) * torch.rand(120, 1, generator=generator)
        features = {need[9:]: torch.randn(150, 5, generator=generator) for need in sorted(needs) if need.startswith("features:")}
        last = Purchase(torch.arange(20, 30), pool.labels[20:30])
        made = Round.of_model(model.eval(), inputs, pool, trainer.outputs, streams, last=last, features=features)
        made._values["mc_probs"] = (made.logits + noise).softmax(2)
    return made


def test_no_two_strategies_always_agree():
    built = {name: library.build("strategy", name, **SMALL.get(name, {})) for name in STRATEGIES}
    picks = {
        name: [frozenset(one.select(fair_round(seed, one.needs, one.heads()), 12).tolist()) for seed in range(4)]
        for name, one in built.items()
    }
    agreeing = [pair for pair in itertools.combinations(picks, 2) if picks[pair[0]] == picks[pair[1]]]
    assert not agreeing
