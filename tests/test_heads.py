"""Heads of one name: shared where they are the same, refused where they differ."""

import pytest

from alenv import library
from alenv.campaign import Plan
from alenv.heads import Head, distinct
from alenv.problem import Problem
from alenv.settings.standard import standard
from alenv.strategies.learning_loss import LearningLoss
from alenv.strategies.prefilter import Prefilter
from alenv.strategies.tidal import TiDAL
from alenv.toy import blobs
from alenv.trainer import Trainer


def test_strategies_that_declare_the_same_head_share_it():
    first, second = LearningLoss(), LearningLoss(subpool=10)  # the subpool is no matter of the head's
    assert distinct([*first.heads(), *second.heads(), *TiDAL().heads()])[0].name == "loss"
    assert len(distinct([*first.heads(), *second.heads(), *TiDAL().heads()])) == 2


@pytest.mark.parametrize("changed", [{"width": 64}, {"margin": 2.0}, {"weight": 0.5}, {"joint_until": 1.0}])
def test_heads_of_one_name_with_other_numbers_are_refused_by_name(changed):
    with pytest.raises(ValueError, match="two heads are called 'loss' but differ"):
        distinct([*LearningLoss().heads(), *LearningLoss(**changed).heads()])


def test_heads_of_one_name_and_other_losses_are_refused():
    own = Head("dynamics", lambda *_: None, lambda batch: batch.outputs.sum(), parameters=(1.0, 128))
    with pytest.raises(ValueError, match="another name"):
        distinct([*TiDAL().heads(), own])


def test_a_wrapper_whose_parts_disagree_is_refused_too():
    with pytest.raises(ValueError, match="two heads are called 'loss'"):
        Prefilter(LearningLoss(), LearningLoss(width=64)).heads()


def test_a_run_with_two_such_heads_is_refused_before_it_starts():
    strategies = {"a": LearningLoss(), "b": LearningLoss(width=64)}
    problem = Problem(
        blobs(3), standard, library.build("net", "linear"), Trainer(device="cpu"), strategies, Plan(10, 5, 2, "quota")
    )
    with pytest.raises(ValueError, match="two heads are called 'loss'"):
        problem.campaign(0)
