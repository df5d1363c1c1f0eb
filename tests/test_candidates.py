"""Candidate sets: what they hold, how a task refuses what it cannot serve, and wrappers all the way to the records."""

import json

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from alenv import cli, library
from alenv.problem import assemble
from alenv.runner import Runner
from alenv.strategies.bald import BALD
from alenv.strategies.entropy import Entropy
from alenv.strategies.margin import Margin
from alenv.strategy import Strategy

ALSCOPE = [
    "uniform", "least_confidence", "margin", "entropy", "variation_ratio", "mean_std", "bald", "corelog", "coremse",
    "learning_loss", "coreset", "badge", "alfa_mix", "noise_stability", "saal", "entropy_cb", "coreset_cb", "tidal", "ccal",
    "lfosa", "mqnet",
]  # fmt: skip


class Picky(Margin):
    """Margin that asks for more than it reads."""

    def __init__(self, *needs):
        self.needs = Margin.needs | set(needs)


def refusal(strategies, **arguments):
    with pytest.raises(ValueError, match="need") as caught:
        assemble(strategies=strategies, device="cpu", **arguments).campaign(0)
    return str(caught.value).splitlines()


def test_alscope21_holds_the_21_strategies_of_the_paper():
    built = library.strategies("alscope21")
    assert list(built) == ALSCOPE
    assert len(built) == 21
    assert all(isinstance(strategy, Strategy) for strategy in built.values())


def test_all_holds_the_sets_and_more():
    everything = library.strategies("all")
    assert set(ALSCOPE) | set(library.strategies("autoal7")) < set(everything)


@pytest.mark.parametrize("name", ["alscope21", "all"])
def test_a_set_on_a_task_without_features_is_refused_with_every_name_and_a_remedy_that_works(name):
    lines = refusal(name)
    told = {n for n, strategy in library.strategies(name).items() if any(need.startswith("features:") for need in strategy.needs)}
    assert {"ccal", "mqnet"} <= told
    assert all(any(f"'{n}'" in line and "set features={" in line for line in lines) for n in told), lines
    without = lines[-1].rpartition("without: [")[2].rstrip("]}").split(", ")
    assert set(without) == told
    assert assemble(strategies={"set": name, "without": without}, device="cpu").campaign(0)
    missing = {
        need.partition(":")[2] for n in told for need in library.build("strategy", n).needs if need.startswith("features:")
    }
    assert assemble(strategies=name, features=dict.fromkeys(missing, "raw"), device="cpu").campaign(0)


def test_everyone_who_needs_what_is_not_there_is_named():
    offered = {"one": Picky("features:semantic"), "two": Picky("features:semantic"), "three": Picky("aux:loss"), "four": Margin()}
    lines = refusal(offered)
    assert lines[0].startswith("strategies 'one', 'two' need features:semantic, which this task does not offer; set features=")
    assert lines[0].endswith(", or drop them from strategies=")
    assert lines[1] == "strategy 'three' needs aux:loss, which this task does not offer; drop it from strategies="
    assert lines[2] == "to drop them from a set: strategies={set: <its name>, without: [one, two, three]}"
    assert len(lines) == 3


def test_a_net_without_noise_is_told_once_for_all_who_need_it():
    net = {"name": "mlp", "dropout": 0.0}
    assert refusal({"bald": BALD(), "entropy": Entropy(), "other": BALD()}, net=net)[0] == (
        "strategies 'bald', 'other' need stochastic outputs, but the net has no dropout; "
        "set net.dropout above 0, or drop them from strategies="
    )
    assert len(refusal({"bald": BALD()}, net=net)) == 1
    both = refusal({"both": Picky("mc_probs", "aux:loss")}, net=net)[0]
    assert "aux:loss, which this task does not offer and stochastic outputs, but the net has no dropout" in both


def test_a_wrapper_is_refused_for_what_is_inside():
    wrapped = library.build("strategy", {"name": "subsample", "inner": Picky("features:semantic")})
    assert refusal({"wrapped": wrapped})[0].startswith("strategy 'wrapped' needs features:semantic")


@pytest.fixture
def hydra():
    OmegaConf.register_new_resolver("alenv_run", cli.run_name, replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_module("alenv.configs", version_base="1.3"):
        yield lambda *words: cli.resolved(compose("train", overrides=["device=cpu", *words]))
    GlobalHydra.instance().clear()


def test_sets_and_wrappers_are_written_on_the_command_line(hydra):
    words = "strategies={set: autoal7, without: [bald, mean_std]}"
    assert list(Runner.of(hydra(words, "selector=random_pick")).problem.strategies) == [
        "least_confidence", "margin", "entropy", "kmeans", "variation_ratio",
    ]  # fmt: skip
    words = "strategies=[margin,{name: prefilter, by: margin, inner: {name: kmeans, iterations: 3}}]"
    built = Runner.of(hydra(words, "selector=random_pick")).problem.strategies
    assert list(built) == ["margin", "prefilter(margin,kmeans)"]
    assert built["prefilter(margin,kmeans)"].inner.iterations == 3
    alone = Runner.of(hydra("selector=fixed", "selector.strategy={name: subsample, inner: bald, size: 300}")).problem.strategies
    assert list(alone) == ["subsample(bald)"]


def test_records_name_wrappers_by_what_is_inside(hydra, tmp_path):
    words = "strategies=[{name: subsample, inner: learning_loss, size: 100}, {name: class_balance, inner: margin}]"
    config = hydra(words, "selector=random_pick", "budget.rounds=3")
    whole = Runner.of(config, tmp_path / "whole").run()
    assert whole.rounds[1].strategies == ("subsample(learning_loss)", "class_balance(margin)")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line["chosen_by"]} <= set(whole.rounds[1].strategies)
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["strategies"] == config["strategies"]
