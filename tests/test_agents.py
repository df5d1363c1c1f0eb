"""Learned policies: nets that treat strategies alike, their files, and the selectors that run them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alenv import toy
from alenv.agents import FEATURES, Agent, StrategyNet, load_agent, save_agent, seen, shipped
from alenv.campaign import action_weights
from alenv.checks import check_selector
from alenv.runner import Runner
from alenv.selectors.dqn import DQN
from alenv.selectors.ppo import PPO
from alenv.selectors.sac import SAC
from alenv.streams import Streams

ACTED_BY = {"ppo": PPO, "dqn": DQN, "sac": SAC}
F, G = len(FEATURES["campaign"]), len(FEATURES["strategies"])


def net(outputs=1, summaries=2, extra=0, seed=0):
    with Streams(seed).scoped("net"):
        return StrategyNet(outputs, summaries, hidden=16, extra=extra)


def observations(campaigns=3, strategies=5, padding=0, seed=0):
    draw = np.random.default_rng(seed)
    table = np.zeros((campaigns, strategies + padding, G), np.float32)
    table[:, :strategies] = draw.uniform(-1, 1, (campaigns, strategies, G))
    mask = np.zeros((campaigns, strategies + padding), np.float32)
    mask[:, :strategies] = 1
    row = draw.uniform(-1, 1, (campaigns, F)).astype(np.float32)
    return {"campaign": row, "strategies": table.reshape(campaigns, -1), "mask": mask}


@pytest.fixture
def file(tmp_path):
    """Make a file of an untrained agent."""

    def made(algorithm="ppo", seed=0):
        path = tmp_path / f"{algorithm}{seed}.safetensors"
        save_agent(path, Agent(net(2 if algorithm == "sac" else 1, 0, seed=seed), algorithm, {"steps": 0}))
        return path

    return made


def test_permuted_strategies_give_permuted_outputs_and_the_same_summaries():
    one, given = net(outputs=2), seen(observations())
    order = torch.tensor([3, 1, 4, 0, 2])
    each, whole = one(*given)
    moved, same = one(given.campaign, given.strategies[:, order], given.mask)
    assert torch.allclose(moved, each[:, order], atol=1e-6)
    assert torch.allclose(same, whole, atol=1e-6)
    assert (each[:, 0] - each[:, 1]).abs().min() > 1e-4, "strategies are told apart"


def test_a_critic_permutes_its_actions_with_the_strategies():
    one, given = net(outputs=0, summaries=1, extra=1), seen(observations())
    actions, order = torch.rand(3, 5, 1, generator=Streams(0)("actions")), torch.tensor([4, 3, 2, 1, 0])
    whole = one(*given, actions)[1]
    moved = one(given.campaign, given.strategies[:, order], given.mask, actions[:, order])[1]
    assert torch.allclose(whole, moved, atol=1e-6)
    assert (one(*given, 1 - actions)[1] - whole).abs().min() > 1e-5


def test_padding_changes_nothing():
    one = net()
    each, whole = one(*seen(observations(padding=0)))
    padded, same = one(*seen(observations(padding=7)))
    assert torch.allclose(padded[:, :5], each, atol=1e-6)
    assert torch.allclose(same, whole, atol=1e-6)


def test_what_other_strategies_are_matters():
    one, given = net(), seen(observations())
    changed = given.strategies.clone()
    changed[:, 4] = -changed[:, 4]
    assert (one(given.campaign, changed, given.mask)[0][:, 0] - one(*given)[0][:, 0]).abs().min() > 1e-5


def test_observations_of_one_campaign_are_those_of_many():
    many = observations(campaigns=2)
    for lane in range(2):
        alone = seen({key: value[lane] for key, value in many.items()}, 4)
        assert torch.equal(alone.strategies[0], seen(many, 4).strategies[lane])
        assert alone.strategies.shape == (1, 4, G)
        assert torch.equal(alone.strategies[0].flatten(), torch.from_numpy(many["strategies"][lane][: 4 * G]))


def test_a_saved_agent_comes_back(file):
    path = file()
    found = load_agent(path)
    given = seen(observations())
    assert torch.equal(found.net(*given)[0], net(1, 0)(*given)[0])
    assert (found.algorithm, found.made) == ("ppo", {"steps": 0})
    assert not any(p.requires_grad for p in found.net.parameters())
    folder = path.parent / "run"
    folder.mkdir()
    save_agent(folder / "agent.safetensors", found)
    assert load_agent(folder).made == {"steps": 0}


def test_files_that_are_absent_damaged_or_of_another_version_are_told_apart(file, tmp_path):
    with pytest.raises(ValueError, match=r"no agent in .*nowhere.*: expected .*python -m alenv.train_agent makes them"):
        load_agent(tmp_path / "nowhere")
    path = file()
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, "features": {"campaign": ["other"], "strategies": []}}))
    with pytest.raises(ValueError, match="trained on other observations than this version"):
        load_agent(path)
    path.with_suffix(".json").write_text(json.dumps({**card, "net": {"hidden": 8}}))
    with pytest.raises(ValueError, match="is damaged"):
        load_agent(path)
    path.with_suffix(".json").write_text(json.dumps(card))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"is damaged .*train it again"):
        load_agent(path)


@pytest.mark.parametrize("name", ["dqn", "sac"])
def test_selectors_without_an_agent_of_their_own_ask_for_one(name):
    with pytest.raises(ValueError, match=rf"^selector {name} needs selector.path=<an agent>; train one with .*algorithm={name}$"):
        ACTED_BY[name]()


def test_an_agent_of_another_algorithm_is_refused_and_the_right_selector_named(file):
    with pytest.raises(ValueError, match="holds an agent of sac, which is no dqn; use selector=sac"):
        DQN(str(file("sac")))


def test_an_agent_comes_with_alenv_and_says_how_it_was_made():
    agent = load_agent(shipped("ppo"))
    assert agent.algorithm in PPO.algorithms
    assert agent.made["command"].startswith("python -m alenv.train_agent")
    assert "hydra" not in agent.made["command"]
    assert agent.made["config"]["seed"] >= 0
    assert agent.made["seconds"] > 0
    assert shipped("dqn") is None


@pytest.mark.parametrize("name", ACTED_BY)
def test_selectors_of_agents_keep_the_contract(name, file):
    check_selector(ACTED_BY[name](str(file(name))))


@pytest.mark.parametrize("name", ACTED_BY)
@pytest.mark.parametrize("count", [2, 7, 20])
def test_an_agent_runs_with_any_number_of_strategies(name, count, file):
    selector = ACTED_BY[name](str(file(name)))
    names = tuple(f"s{i}" for i in range(count))
    selector.begin(SimpleNamespace(strategies=names, streams=Streams(0)))
    ballot = SimpleNamespace(names=names, round=SimpleNamespace(index=1))
    given = {key: value[0] for key, value in observations(1, count, padding=64 - count).items()}
    weights = action_weights(selector.action_kind, selector.act(given, ballot), count, 10)
    assert weights.shape == (count,)
    assert list(selector.update(None)) == [f"weight/{s}" for s in names]
    assert sum(selector.update(None).values()) == pytest.approx(1)


def acted(selector, count=6, rounds=30, seed=0):
    names = tuple("abcdefgh"[:count])
    selector.begin(SimpleNamespace(strategies=names, streams=Streams(seed)))
    ballots = [SimpleNamespace(names=names, round=SimpleNamespace(index=i)) for i in range(rounds)]
    return [
        np.asarray(selector.act({k: v[0] for k, v in observations(1, count, 64 - count, i).items()}, b)).tolist()
        for i, b in enumerate(ballots)
    ]


def test_the_policy_is_deterministic_unless_it_is_asked_to_draw(file):
    path = str(file())
    assert acted(PPO(path)) == acted(PPO(path), seed=1)
    assert acted(PPO(path, sample=True)) == acted(PPO(path, sample=True))
    assert acted(PPO(path, sample=True)) != acted(PPO(path, sample=True), seed=1)


def test_draws_follow_the_logged_probabilities(file):
    selector = PPO(str(file()), sample=True)
    names = tuple("abcd")
    selector.begin(SimpleNamespace(strategies=names, streams=Streams(0)))
    given = {k: v[0] for k, v in observations(1, 4, 60).items()}
    picks = [selector.act(given, SimpleNamespace(names=names, round=SimpleNamespace(index=i))) for i in range(2000)]
    expected = list(selector.update(None).values())
    assert np.bincount(picks, minlength=4) / 2000 == pytest.approx(expected, abs=0.05)


def test_a_policy_without_preference_is_by_lot(file):
    selector = PPO(str(file()))
    for parameter in selector.agent.net.each[-1].parameters():
        parameter.data.zero_()
    assert len(set(acted(selector))) == 6


@pytest.mark.parametrize("name", ACTED_BY)
def test_agents_learn_nothing_while_they_run(name, file):
    selector = ACTED_BY[name](str(file(name)))
    before = {key: value.clone() for key, value in selector.state_dict().items()}
    Runner(toy.problem(selector, 3), selector).run()
    assert all(torch.equal(value, before[key]) for key, value in selector.state_dict().items())


def test_a_resumed_run_keeps_the_policy_it_began_with(file):
    first, other = PPO(str(file(seed=0))), PPO(str(file(seed=1)))
    expected = acted(first)
    assert acted(other) != expected
    other.load_state_dict(first.state_dict())
    assert acted(other) == expected


def test_the_sac_policy_mixes_by_its_mean_and_the_net_is_the_same_for_every_campaign(file):
    selector = SAC(str(file("sac")))
    (action,) = acted(selector, rounds=1)
    given = seen({k: v[0] for k, v in observations(1, 6, 58).items()}, 6)
    mean = selector.agent.net(*given)[0][0, :, 0].tanh()
    assert action == pytest.approx(mean.tolist(), abs=1e-6)
    assert list(selector.update(None).values()) == pytest.approx(action_weights("mix", action, 6, 1).tolist(), abs=1e-6)


def test_the_shipped_agent_runs_on_data_and_candidates_it_never_saw():
    for strategies in (
        ["margin", "coreset"],
        ["margin", "coreset", "badge", "typiclust", "entropy", "uniform", "kmeans", "bald"],
    ):
        config = {"selector": "ppo", "dataset": "iris", "strategies": strategies, "device": "cpu"}
        run = Runner.of({**config, "budget": {"initial": 6, "batch": 5, "rounds": 3}}).run()
        assert len(run.rounds) == 4
        weights = [run.rounds[1].selector[f"weight/{name}"] for name in strategies]
        assert sum(weights) == pytest.approx(1)


def test_the_net_of_a_selector_ignores_the_order_of_candidates(file):
    selector = PPO(str(file()))
    problem = toy.problem(selector, 3)
    turned = replace(problem, strategies=dict(reversed(list(problem.strategies.items()))))
    chosen = [Runner(p, PPO(str(file()))).run().rounds[1].chosen_by[0] for p in (problem, turned)]
    assert chosen[0] == chosen[1]
