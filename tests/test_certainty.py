"""How certain models are of the candidates, against plain formulas, and for many models against each alone."""

import math

import numpy as np
import pytest
import torch

from alenv import toy
from alenv.certainty import Beliefs, Certainty, narrow_beliefs, wide_beliefs
from alenv.ops import NARROW, softmax, top_two
from alenv.round import Round
from alenv.selectors.fixed import Fixed
from alenv.streams import Streams
from alenv.vector_env import ActiveLearningVectorEnv

SIZES = [1, 2, 15, 16, 33, 700]


def logits(n=200, classes=10, seed=0):
    return 5 * torch.randn(n, classes, generator=Streams(seed)("logits"))


def alone(z):
    probs = softmax(z)
    two = top_two(probs)
    found = wide_beliefs(probs, two) if z.shape[1] >= NARROW else narrow_beliefs(z.T.contiguous().unsqueeze(0))
    return two, Beliefs(found).certainties(z.shape[1])[0]


@pytest.mark.parametrize("classes", [2, 3, 10, 15, 16, 40])
def test_certainty_is_that_of_plain_formulas(classes):
    z = logits(classes=classes)
    found = Round.from_arrays(logits=z).certainty
    p = z.double().softmax(1)
    ordered = p.sort(1, descending=True).values
    shares = torch.bincount(p.argmax(1), minlength=classes) / len(p)
    expected = [
        ordered[:, 0].mean(), ordered[:, 0].std(unbiased=False), (ordered[:, 0] - ordered[:, 1]).mean(),
        torch.special.entr(p).sum(1).mean() / math.log(classes), torch.special.entr(shares).sum() / math.log(classes),
    ]  # fmt: skip
    assert found == pytest.approx([float(value) for value in expected], abs=1e-5)


def in_pieces(pools, size):
    columns = torch.stack([z.T for z in pools])
    return Beliefs(torch.cat([narrow_beliefs(piece) for piece in columns.split(size, 2)], 2))


@pytest.mark.parametrize("classes", [2, 3, 10, 15])
@pytest.mark.parametrize("size", SIZES)
def test_many_models_have_the_bits_of_each_alone(classes, size):
    pools = [logits(800, classes, seed) for seed in range(5)]
    pools[0][::3, 1:] = pools[0][::3, :1]  # classes alike
    chosen = [torch.randperm(800, generator=Streams(seed)("rows"))[:size].sort().values for seed in range(5)]
    for lanes in (range(5), [3, 1]):
        found = in_pieces(pools, 333).some(lanes, [chosen[lane] for lane in lanes])
        for lane, two, certainty in zip(lanes, found.top_two, found.certainties(classes), strict=True):
            expected, numbers = alone(pools[lane][chosen[lane]])
            assert torch.equal(two, expected)
            assert certainty == numbers


def test_bits_do_not_depend_on_how_many_threads_there_are():
    pools = [logits(40_000, 3, seed) for seed in range(3)]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(in_pieces(pools, 40_000).certainties(3))
            assert found[-1] == [alone(z)[1] for z in pools]
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_of_equal_classes_the_first_is_predicted_and_all_are_as_likely():
    certainty = Round.from_arrays(logits=torch.zeros(5, 4)).certainty
    assert certainty == pytest.approx([0.25, 0, 0, 1, 0])
    assert alone(torch.tensor([[0.0, 1, 1], [1, 1, 0]]))[1].balance == pytest.approx(math.log(2) / math.log(3))


def test_a_sure_model_has_no_entropy():
    assert alone(torch.tensor([[200.0, 0, -200]] * 3))[1] == Certainty(1, 0, 1, 0, 0)


@pytest.mark.parametrize("classes", [3, 20])
def test_classes_of_no_probability_add_nothing(classes):
    probs = torch.zeros(4, classes)
    probs[:, :2] = torch.tensor([0.75, 0.25])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(classes)
    assert Round.from_arrays(probs=probs).certainty.entropy == pytest.approx(expected)
    z = torch.full((4, classes), -math.inf)
    z[:, :2] = torch.tensor([math.log(3), 0.0])
    assert Round.from_arrays(logits=z).certainty.entropy == pytest.approx(expected)


def test_without_candidates_everything_is_certain():
    assert Round.from_arrays(logits=torch.zeros(0, 3)).certainty == Certainty()


def test_a_round_in_blocks_is_as_certain_as_one_in_one_piece(monkeypatch):
    whole = Round.from_arrays(logits=logits(1000)).certainty
    monkeypatch.setattr("alenv.round.BLOCK_ELEMENTS", 170)
    assert Round.from_arrays(logits=logits(1000)).certainty == whole


def test_beliefs_of_several_models_are_not_mixed():
    parts = [wide_beliefs(softmax(z), top_two(softmax(z))) for z in (logits(seed=1), logits(seed=2))]
    both = Beliefs(torch.cat(parts))
    assert both.certainties(10) == [Beliefs(part).certainties(10)[0] for part in parts]


def test_a_diverged_model_is_refused_by_the_round_as_ever():
    env = ActiveLearningVectorEnv(2, problems=toy.problem(Fixed("margin"), 1))
    env.reset(seed=0)
    models = [lane.campaign.model for lane in env.envs]
    models[1].linear.bias[0] = torch.nan
    fine, broken = env._score([0, 1], models)
    assert set(fine.known) == {"top_two", "certainty"}
    assert not broken.known


def test_what_the_vector_environment_knows_has_the_bits_a_round_computes():
    env = ActiveLearningVectorEnv(3, problems=toy.problem(Fixed("margin"), 1))
    env.reset(seed=0)
    env.step(np.zeros(3, dtype=np.int64))
    for lane in env.envs:
        z = lane.campaign.trainer.outputs(lane.campaign.model, lane.campaign.task.inputs).logits
        plain = Round.from_arrays(logits=z[lane.campaign.round.candidates])
        assert lane.campaign.round.certainty == plain.certainty
        assert torch.equal(lane.campaign.round.top_two, plain.top_two)
