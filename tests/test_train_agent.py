"""Training of agents: chapters that can be repeated, every algorithm, what is learned and what is not, the command."""

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import load_file
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper

from alenv import cli, train_agent
from alenv.agent_progress import AgentProgress
from alenv.agent_trainer import AgentTrainer, Listener, Sb3Learner, Scalars, defaults, greedy
from alenv.agents import StrategyNet, load_agent, seen
from alenv.campaign import Plan
from alenv.families import families
from alenv.imitation import Imitator, looked_ahead
from alenv.runner import Runner
from alenv.sb3 import vec_env
from alenv.sb3_policies import MixPolicy, PickPolicy, ValuePolicy
from alenv.streams import Streams

WHOLE = yaml.safe_load((Path(__file__).parent.parent / "configs" / "train_agent.yaml").read_text(encoding="utf-8"))
SMALL = {
    "steps": 16, "envs": 2, "chapter": 8, "tasks": ["iris", "wine"], "strategies": ["margin", "uniform", "kmeans"], "hidden": 8,
    "budget": {"initial": 6, "batch": 5, "rounds": 2}, "evaluation": {"campaigns": 2, "tasks": None}, "device": "cpu",
}  # fmt: skip
ALGORITHMS = ("ppo", "dqn", "sac", "imitation")
QUICK = {
    "ppo": {"n_epochs": 2}, "dqn": {"learning_starts": 4, "batch_size": 4}, "sac": {"learning_starts": 4, "batch_size": 4},
    "imitation": {"epochs": 2},
}  # fmt: skip


def config(algorithm="ppo", **changes):
    whole = {key: value for key, value in WHOLE.items() if key not in ("defaults", "hydra")}
    chosen = {"setting": "standard", "net": "linear", "trainer": "default", "reward": "gain"}
    return {**whole, **chosen, **SMALL, "algorithm": algorithm, "learner": QUICK.get(algorithm), **changes}


class Stop(Listener):
    """Kills the training in the middle of a chapter."""

    def __init__(self, after):
        self.after = after

    def chapter(self, row):
        if row["steps"] >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(algorithm, tmp_path):
    whole = AgentTrainer(config(algorithm), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        AgentTrainer(config(algorithm), tmp_path / "cut", [Stop(8)]).run()
    assert not (tmp_path / "cut" / "summary.json").exists()
    resumed = AgentTrainer(config(algorithm), tmp_path / "cut").run()
    for name in ("agent", "best"):
        one, other = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "cut"))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    lines = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]
        for text in ((tmp_path / folder / "evaluations.jsonl").read_text() for folder in ("whole", "cut"))
    ]
    assert lines[0] == lines[1]
    assert [line["steps"] for line in lines[0]] == [8, 16]
    assert resumed["random_area"] == whole["random_area"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_trained_runs_as_a_selector_with_other_strategies(algorithm, tmp_path):
    AgentTrainer(config(algorithm, steps=8), tmp_path / "run", command="made so").run()
    agent = load_agent(tmp_path / "run")
    assert (agent.algorithm, agent.made["command"], agent.made["steps"]) == (algorithm, "made so", 8)
    name = "ppo" if algorithm == "imitation" else algorithm
    selector = {"name": name, "path": str(tmp_path / "run")}
    budget = {"initial": 6, "batch": 5, "rounds": 2}
    run = Runner.of(
        {"selector": selector, "dataset": "iris", "strategies": ["margin", "entropy", "bald", "coreset"], "budget": budget}
    ).run()
    assert len(run.rounds) == 3


@pytest.mark.parametrize("algorithm", ["ppo", "imitation"])
def test_training_changes_the_policy_and_the_seed_decides_everything(algorithm, tmp_path):
    nets = []
    for folder, changes in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        trainer = AgentTrainer(config(algorithm, evaluation={"campaigns": 0, "tasks": None}, **changes), tmp_path / folder)
        before = {key: value.clone() for key, value in trainer.learner.net.state_dict().items()}
        trainer.run()
        nets.append(load_file(tmp_path / folder / "agent.safetensors"))
        assert any(not torch.equal(value, before[key]) for key, value in nets[-1].items())
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())
    assert any(not torch.equal(value, nets[2][key]) for key, value in nets[0].items())


def test_masked_ppo_trains_campaigns_with_different_numbers_of_strategies(tmp_path):
    pytest.importorskip("sb3_contrib")
    trainer = AgentTrainer(config("maskable_ppo", learner={"n_epochs": 1}), tmp_path / "run")
    trainer.run()
    assert load_agent(tmp_path / "run").algorithm == "maskable_ppo"


def test_a_finished_training_is_not_repeated_another_one_refused_and_fresh_starts_over(tmp_path):
    first = AgentTrainer(config(steps=8), tmp_path / "run").run()
    assert AgentTrainer(config(steps=8), tmp_path / "run").run() == first
    with pytest.raises(ValueError, match=r"another configuration \(hidden: 8 -> 4\)"):
        AgentTrainer(config(steps=8, hidden=4), tmp_path / "run").run()
    AgentTrainer(config(steps=8, hidden=4, fresh=True), tmp_path / "run").run()
    assert load_agent(tmp_path / "run").net.arguments["hidden"] == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "pp"}, "expected algorithm to be one of ppo, maskable_ppo, imitation, dqn, sac, got 'pp'"),
        ({"steps": 0}, "expected steps to be a whole number >= 1, got 0"),
        ({"tasks": ["irs"]}, "unknown dataset 'irs'; did you mean 'iris'"),
        ({"learner": {"gama": 0}}, "learner: .*unexpected keyword argument 'gama'"),
        ({"budget": {"initial": 6, "batch": 50, "rounds": 9}}, "the budget buys 456 labels"),
    ],
)
def test_a_training_that_cannot_begin_leaves_nothing(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        AgentTrainer(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def environment(count=2, strategies=("margin", "uniform", "kmeans"), action="pick", rounds=2, max_strategies=5):
    plan = Plan(initial=6, batch=5, rounds=rounds, action=action)
    problems = families(["iris", "wine"], list(strategies), count, plan, 0, None, device="cpu")
    return vec_env(count, problems=problems, max_strategies=max_strategies)


def permuted(observations, order):
    table = observations["strategies"].reshape(len(observations["mask"]), -1, 10)
    return {**observations, "strategies": table[:, order].reshape(len(table), -1), "mask": observations["mask"][:, order]}


def random_observations(env, seed=0):
    draw = Streams(seed)("observations")
    made = {key: torch.rand(4, *space.shape, generator=draw) for key, space in env.observation_space.spaces.items()}
    return {**made, "mask": torch.tensor([[1.0, 1, 1, 0, 0]]).repeat(4, 1)}


def test_the_policies_of_sb3_permute_their_outputs_with_the_strategies():
    order = [2, 0, 1, 3, 4]
    with Streams(0).scoped("policies"):
        env, mixing = environment(), environment(action="mix")
        pick = PickPolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=8)
        value = ValuePolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=8)
        mix = MixPolicy(mixing.observation_space, mixing.action_space, lambda _: 1e-3, hidden=8)
    given = random_observations(env)
    moved = permuted(given, order)
    with torch.no_grad():
        logits, same = pick.get_distribution(given).distribution.probs, pick.get_distribution(moved).distribution.probs
        assert torch.allclose(logits[:, order[:3]], same, atol=1e-6)
        assert torch.allclose(pick.predict_values(given), pick.predict_values(moved), atol=1e-6)
        assert torch.allclose(value.q_net(given)[:, order[:3]], value.q_net(moved), atol=1e-6)
        mean, moved_mean = mix.actor.get_action_dist_params(given)[0], mix.actor.get_action_dist_params(moved)[0]
        assert torch.allclose(mean[:, order[:3]], moved_mean, atol=1e-6)
        actions = mean.tanh()
        for one, other in zip(mix.critic(given, actions), mix.critic(moved, actions[:, order[:3]]), strict=True):
            assert torch.allclose(one, other, atol=1e-6)
            assert (one - mix.critic(given, -actions)[0]).abs().max() > 1e-4, "values depend on actions"


def test_a_strategy_that_is_not_there_is_never_picked():
    with Streams(0).scoped("policies"):
        env = environment()
        pick = PickPolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=8)
        given = random_observations(env) | {"mask": torch.tensor([[1.0, 0, 1, 0, 0]]).repeat(4, 1)}
        probabilities = pick.get_distribution(given).distribution.probs
        assert (probabilities[:, 1] == 0).all()
        assert probabilities.isfinite().all()
        assert pick.evaluate_actions(given, torch.zeros(4))[2].isfinite().all()


def test_the_agent_in_a_policy_is_what_decides():
    with Streams(0).scoped("policies"):
        env = environment()
        agent = PPO(PickPolicy, env, n_steps=4, batch_size=8, policy_kwargs={"hidden": 8}, device="cpu")
        observations = env.reset()
        expected = agent.policy.get_distribution({k: torch.from_numpy(v) for k, v in observations.items()}).distribution.logits
        logits = agent.policy.agent(*seen(observations, 3))[0][:, :, 0]
        assert torch.allclose(logits.log_softmax(1), expected, atol=1e-6)
        assert agent.policy.mlp_extractor.actor is agent.policy.agent


def test_ppo_begins_nearly_uniform():
    with Streams(0).scoped("policies"):
        env = environment()
        pick = PickPolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=64)
        probabilities = pick.get_distribution(random_observations(env)).distribution.probs
    assert probabilities.detach().numpy() == pytest.approx(np.full((4, 3), 1 / 3), abs=0.01)


def test_rollouts_of_ppo_hold_whole_campaigns():
    parameters = defaults("ppo", Plan(6, 5, 7), 4, 1000)
    assert parameters["n_steps"] % 7 == 0
    assert parameters["n_steps"] * 4 % parameters["batch_size"] == 0


def test_a_greedy_policy_picks_the_best_and_draws_between_equals():
    net = StrategyNet.__new__(StrategyNet)
    torch.nn.Module.__init__(net)
    net.forward = lambda campaign, strategies, mask: (strategies[:, :, :1], None)
    given = {"campaign": np.zeros((2, 16), np.float32), "mask": np.array([[1, 1, 0], [1, 1, 1]], np.float32)}
    table = np.zeros((2, 3, 10), np.float32)
    table[:, 2, 0] = 1
    given["strategies"] = table.reshape(2, -1)
    picks = [greedy(net, given, 3, "pick", np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert {p[1] for p in picks} == {2}
    assert {p[0] for p in picks} == {0, 1}
    assert {p for seed in range(40) for p in greedy(None, given, 3, "pick", np.random.default_rng(seed))} == {0, 1, 2}


def test_the_oracle_that_is_imitated_foresees_what_buying_leads_to():
    env = environment(1, rounds=3).venv.envs[0]
    env.reset(seed=3)
    foreseen = looked_ahead(env, 4)
    assert foreseen[3] == -torch.inf
    assert [env.simulate(s)["accuracy"] for s in range(3)] == pytest.approx(foreseen[:3].tolist())
    env.step(1)
    assert env.campaign.records[-1].metrics["accuracy"] == pytest.approx(float(foreseen[1]))


def test_imitation_refuses_what_is_no_probability():
    problems = families(["iris"], ["margin"], 1, Plan(6, 5, 2), 0, None, device="cpu")
    with pytest.raises(ValueError, match=r"expected coin in \[0, 1\], temperature > 0, got coin=2"):
        Imitator(problems, coin=2)


# What is learned


class Planted(VecEnvWrapper):
    """Pays 1 for the strategy that reads `feature`, nothing for others; shuffled, pays it whatever was done."""

    def __init__(self, venv, feature, shuffled):
        super().__init__(venv)
        self.feature, self.shuffled = feature, shuffled
        self.draw = np.random.default_rng(0)

    def reset(self):
        self.last = self.venv.reset()
        return self.last

    def step_async(self, actions):
        table = self.last["strategies"].reshape(len(actions), -1, 10)
        self.paid = table[np.arange(len(actions)), actions, self.feature].astype(np.float32)
        self.venv.step_async(actions)

    def step_wait(self):
        self.last, _, done, infos = self.venv.step_wait()
        # of lots of its own: among few campaigns a permutation leaves every action part of its reward
        paid = self.draw.integers(0, 2, len(self.paid)).astype(np.float32) if self.shuffled else self.paid
        return self.last, paid, done, infos


CANDIDATES = ("uniform", "margin", "kmeans")
READS_PROBABILITIES, READS_EMBEDDINGS = 1, 3


def weights_after(steps, feature, shuffled, count=8, seed=0):
    """Mean probability of each candidate after PPO has learned on generated tasks."""
    plan = Plan(initial=6, batch=5, rounds=4)
    problems = families([{"name": "mixtures", "size": 100, "test": 10}], list(CANDIDATES), count, plan, seed, None, device="cpu")
    env = Planted(vec_env(count, problems=problems, max_strategies=3), feature, shuffled)
    settings = {"seed": seed, "hidden": 16, "steps": steps, "learner": {"learning_rate": 5e-3}}
    with Streams(0).scoped("learning"):
        learner = Sb3Learner("ppo", env, plan, settings, Scalars(), lambda _: None)
        learner.model.logger.output_formats.clear()
        learner.chapter(steps, 0)
        observations = {key: torch.from_numpy(value) for key, value in env.reset().items()}
        with torch.no_grad():
            return learner.model.policy.get_distribution(observations).distribution.probs.mean(0)


@pytest.mark.slow
@pytest.mark.parametrize(("feature", "best"), [(READS_PROBABILITIES, "margin"), (READS_EMBEDDINGS, "kmeans")])
def test_ppo_finds_the_strategy_that_was_planted_as_best(feature, best):
    weights = weights_after(960, feature, shuffled=False)
    assert weights[CANDIDATES.index(best)] > 0.5


@pytest.mark.slow
def test_ppo_learns_nothing_from_rewards_that_ignore_its_actions():
    """A single policy drifts; over seeds no strategy is favoured."""
    weights = torch.stack([weights_after(480, READS_PROBABILITIES, shuffled=True, seed=seed) for seed in range(4)])
    assert float((weights.mean(0) - 1 / 3).abs().max()) < 0.25


# The command


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["alenv-train-agent", *words])
        out, err, code = io.StringIO(), io.StringIO(), 0
        monkeypatch.setattr(sys, "__stderr__", err)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                train_agent.main()
            except SystemExit as stop:
                code = stop.code
        return code, out.getvalue(), err.getvalue()

    return call


WORDS = [
    "steps=8", "envs=2", "chapter=8", "tasks=[iris]", "strategies=[margin,uniform]", "hidden=8", "budget.initial=6",
    "learner={gamma: 0}", "budget.batch=5", "budget.rounds=2", "evaluation.campaigns=2",
]  # fmt: skip


def test_the_command_trains_says_how_to_use_what_it_made_and_does_not_repeat_it(command, tmp_path):
    code, out, err = command(*WORDS)
    assert (code, err) == (0, "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("agent-ppo-0-")
    said = out.splitlines()
    assert said[0] == f"run directory: {folder}"
    assert f"use:     python -m alenv.train selector=ppo selector.path={folder}" in said
    assert said[-1] == f"results: {folder}"
    assert shlex.split(load_agent(folder).made["command"]) == ["python", "-m", "alenv.train_agent", *WORDS]
    before = (folder / "agent.safetensors").read_bytes()
    code, again, _ = command(*WORDS)
    assert code == 0
    assert again.splitlines()[-1] == said[-1]
    assert (folder / "agent.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("step=8", "'step' is not an option; did you mean 'steps'?"),
        ("budget.bach=8", "'budget.bach' is not an option; did you mean 'budget.batch'?"),
        ("reward=gian", "unknown reward 'gian'; did you mean 'gain'?"),
        ("algorithm=pppo", "expected algorithm to be one of ppo, maskable_ppo, imitation, dqn, sac, got 'pppo'"),
        ("tasks=[digit]", "unknown dataset 'digit'; did you mean 'digits'?"),
    ],
)
def test_the_command_answers_a_mistake_with_one_line(command, word, said, tmp_path):
    code, _, err = command(word)
    assert (code, err) == (1, f"alenv: {said}\n")
    assert not list(tmp_path.glob("runs/*"))


def test_the_configuration_composes():
    OmegaConf.register_new_resolver("alenv_agent", train_agent.run_name, replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_module("alenv.configs", version_base="1.3"):
        composed = cli.resolved(compose("train_agent"))
    GlobalHydra.instance().clear()
    assert composed.keys() == config().keys()
    assert composed["budget"] == WHOLE["budget"]


def test_a_terminal_gets_a_bar_and_everybody_else_a_line_per_chapter():
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        progress = AgentProgress(console)
        progress.begin(100, 40)
        progress.step(60)
        progress.chapter({"steps": 80, "area": 0.5, "over_random": -0.01, "seconds": 3.0})
        progress.close()
        text = console.file.getvalue()
        assert "continuing after 40 steps" in text
        assert "80 steps, area 0.5000 (-0.0100 over random picks), 3 s" in text
        assert ("80/100" in text) == terminal
