"""Scores of many campaigns at once, against what each campaign finds alone."""

from dataclasses import replace

import pytest
import torch

import alenv.scoring
from alenv import toy
from alenv.campaign import Plan
from alenv.ops import softmax, top_two
from alenv.round import Round
from alenv.selectors.fixed import Fixed
from alenv.task import Source
from alenv.vector_env import ActiveLearningVectorEnv


def problem(unknown=(), classes=None):
    """A toy problem with test examples of its own, some of unknown label."""
    given = toy.problem(Fixed("margin"), 1)
    train, test = given.source.train, toy.blobs(5, size=133).train
    test.targets[list(unknown)] = -1
    return replace(given, source=Source("blobs", train, test, given.source.classes), plan=Plan(12, 6, 2))


def scored(problems):
    env = ActiveLearningVectorEnv(len(problems), problems=problems)
    env.reset(seed=0)
    models = [lane.campaign.model for lane in env.envs]
    return [lane.campaign for lane in env.envs], models, env._score(range(len(problems)), models)


def check(campaigns, models, scores):
    for campaign, model, score in zip(campaigns, models, scores, strict=True):
        z = campaign.trainer.outputs(model, campaign.task.inputs).logits
        assert torch.equal(score.logits(torch.arange(len(z))), z)
        assert score.test == campaign.trainer.evaluate(model, campaign.task.test, campaign.task.groups)
        assert score.validation == campaign.trainer.evaluate(model, campaign.task.validation)
        mine = z[campaign.pool.candidates]
        assert torch.equal(score.known["top_two"], top_two(softmax(mine)))
        assert score.known["certainty"] == Round.from_arrays(logits=mine).certainty


@pytest.mark.parametrize("unknown", [(), (0, 40, 132)])
@pytest.mark.parametrize(("columns", "elements"), [(128, 2**18), (6, 100), (9, 700), (1, 1)])
def test_scores_have_the_bits_of_each_campaign_alone_however_work_is_cut(unknown, columns, elements, monkeypatch):
    monkeypatch.setattr(alenv.scoring, "COLUMNS", columns)
    monkeypatch.setattr(alenv.scoring, "PIECE_ELEMENTS", elements)
    check(*scored([problem(unknown)] * 5))


def test_campaigns_with_groups_and_test_rows_of_their_own_share_the_product():
    plain = problem()
    campaigns, models, _ = scored([plain] * 3)
    few = replace(campaigns[1].task, groups={"few": (0,), "many": (1, 2)})
    rows = torch.tensor([7, 3, 100, 5])
    other = replace(campaigns[2].task, test=plain.source.test.take(rows), split=replace(campaigns[2].task.split, test=rows))
    campaigns[1].task, campaigns[2].task = few, other
    scores = alenv.scoring.Scorer()(models, campaigns, [plain] * 3)
    check(campaigns, models, scores)
    assert {"few", "many"} <= scores[1].test.keys()
    check(campaigns[:2], models[:2], alenv.scoring.Scorer()(models[:2], campaigns[:2], [plain] * 2))
    turned = replace(other, test=plain.source.test.take(torch.arange(133).flip(0)))
    campaigns[2].task = replace(turned, split=replace(turned.split, test=torch.arange(133).flip(0)))
    check(campaigns[2:], models[2:], alenv.scoring.Scorer()(models[2:], campaigns[2:], [plain]))


def test_an_empty_test_set_means_that_tests_are_cut_from_the_training_examples():
    given = problem()
    empty = given.source.test.take(torch.arange(0))
    check(*scored([replace(given, source=replace(given.source, test=empty))] * 2))


def test_of_many_classes_no_beliefs_are_known(monkeypatch):
    monkeypatch.setattr(alenv.scoring, "NARROW", 3)
    _, _, scores = scored([problem()] * 2)
    assert [dict(score.known) for score in scores] == [{}, {}]
