"""What nobody holds any more is freed at once: no cycle keeps the arrays of a finished run alive."""

import gc
import weakref

import pytest

from alenv.env import ActiveLearningEnv
from alenv.runner import Runner


@pytest.fixture(autouse=True)
def _without_the_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("selector", ["uniform_mixture", "albl", {"name": "autoal", "fit_epochs": 2, "steps": 6}])
def test_a_finished_run_leaves_no_task_behind(selector):
    runner = Runner.of(
        {"dataset": "iris", "budget": {"initial": 5, "batch": 5, "rounds": 2}, "selector": selector, "seed": 0, "device": "cpu"}
    )
    runner.run()
    campaign = runner.env.campaign
    left = {
        "task": weakref.ref(campaign.task),
        "round": weakref.ref(campaign.round),
        "source": weakref.ref(runner.problem.source),
    }
    del runner, campaign
    assert [name for name, ref in left.items() if ref() is not None] == []


def test_a_step_frees_the_round_before():
    env = ActiveLearningEnv(dataset="iris", initial=5, batch=5, rounds=3)
    env.reset(seed=0)
    env.step(0)
    before = weakref.ref(env.campaign.round)
    env.step(1)
    assert before() is None
