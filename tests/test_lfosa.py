"""LfOSA: mixtures against scikit-learn's, what comes last, and a detector that finds the known classes."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from alenv.checks import check_strategy
from alenv.model import TaskModel
from alenv.pool import OUTSIDE, Pool
from alenv.round import Round
from alenv.strategies.lfosa import LfOSA, upper_shares
from alenv.streams import Streams
from alenv.trainer import Trainer

CENTRES = torch.tensor([[6.0, 0.0], [0.0, 6.0], [-5.0, -5.0]])  # two classes, and what is of none


def grouped(*groups: list[float]) -> tuple[Tensor, Tensor]:
    values = torch.tensor([v for group in groups for v in group])
    return values, torch.tensor([i for i, group in enumerate(groups) for _ in group])


class Fixed(LfOSA):
    """LfOSA whose detector says what the test wants; no training."""

    def _net(self, round: Round, known: Tensor) -> TaskModel:
        with round.scoped("test"):
            net = TaskModel(torch.nn.Identity(), 3, 3)
        with torch.no_grad():
            net.linear.weight.copy_(torch.eye(3))
            net.linear.bias.zero_()
        return net

    def _train(self, *_: object) -> None: ...


def clouds(seed: int, per_cloud: int = 40) -> tuple[Tensor, Tensor]:
    """Points of the three clouds, and whose they are: 0, 1, or 2 for none."""
    cloud = torch.arange(3).repeat_interleave(per_cloud)
    return CENTRES[cloud] + torch.randn(len(cloud), 2, generator=Streams(seed)("clouds")), cloud


def a_round(seed: int, outside: int = 8) -> tuple[Round, Tensor]:
    x, cloud = clouds(seed)
    mine, mine_of = clouds(seed + 100, per_cloud=4)
    found, found_of = clouds(seed + 200, per_cloud=outside)
    now = Round.from_arrays(
        embeddings=x, labeled_embeddings=mine[mine_of < 2], labels=mine_of[mine_of < 2], num_classes=2,
        discarded_embeddings=found[found_of == 2], seed=seed,
    )  # fmt: skip
    return now, cloud


def test_the_two_high_logits_of_a_class_belong_to_the_upper_gaussian() -> None:
    shares = upper_shares(*grouped([10.0, 9.8, 1.0, 1.2]), 1)
    assert shares[:2].min() > 0.99
    assert shares[2:].max() < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_the_mixtures_of_all_groups_are_those_scikit_learn_fits_one_by_one(seed: int) -> None:
    draw = Streams(seed)("mixture")
    groups = [
        torch.cat([torch.randn(a, generator=draw), m + s * torch.randn(b, generator=draw)]).tolist()
        for a, b, m, s in ((40, 30, 6.0, 1.0), (25, 60, 9.0, 0.5), (30, 30, 7.0, 1.5))
    ]
    values, group = grouped(*groups)
    shares = upper_shares(values.double(), group, 4)
    for i, members in enumerate(groups):
        x = np.array(members)[:, None]
        theirs = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
        expected = theirs.predict_proba(x)[:, theirs.means_.argmax()]
        np.testing.assert_allclose(shares[group == i].numpy(), expected, atol=1e-5)


def test_a_groups_fit_does_not_depend_on_the_others_nor_on_the_order() -> None:
    values, group = grouped([1.0, 1.1, 5.0, 5.3, 4.9], [0.0, 7.0, 7.5, 0.2], [3.0])
    together = upper_shares(values, group, 3)
    alone = [upper_shares(values[group == i], torch.zeros(int((group == i).sum()), dtype=torch.int64), 1) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    lot = torch.randperm(len(values), generator=Streams(0)("lot"))
    torch.testing.assert_close(upper_shares(values[lot], group[lot], 3), together[lot])


def test_groups_of_one_get_nothing_and_groups_of_equals_a_half() -> None:
    assert upper_shares(*grouped([3.0], [2.0, 2.0, 2.0], [], [1.0, 8.0]), 4).tolist() == [0, 0.5, 0.5, 0.5, 0, 1]


def test_what_is_predicted_unknown_comes_last_however_large_its_logit() -> None:
    logits = torch.tensor([[10.0, 0, 0], [9.8, 0, 0], [1, 0, 0], [1.2, 0, 0], [0, 0, 50.0], [0, 4.0, 0]])
    now = Round.from_arrays(
        embeddings=logits, labeled_embeddings=logits[:2], labels=[0, 1], num_classes=2, discarded_embeddings=logits[:0]
    )
    strategy = Fixed("head")
    scores = strategy.score(now)
    assert scores[4] == -1
    assert scores[5] == 0
    picks = strategy.select(now, 6).tolist()
    assert set(picks[:2]) == {0, 1}
    assert picks[-1] == 4
    assert len(strategy.select(now, 5)) == 5


def test_a_batch_is_full_even_where_every_class_is_predicted_once() -> None:
    logits = torch.tensor([[3.0, 0, 0], [0, 5.0, 0], [0, 0, 9.0]])
    now = Round.from_arrays(
        embeddings=logits, labeled_embeddings=logits[:2], labels=[0, 1], num_classes=2, discarded_embeddings=logits[:0]
    )
    picks = [Fixed("head").select(now, budget).tolist() for budget in (1, 2, 3)]
    assert [len(set(p)) for p in picks] == [1, 2, 3]
    assert picks[2][-1] == 2
    assert 2 not in picks[0] + picks[1]


@pytest.mark.parametrize("seed", range(3))
def test_on_separable_data_every_purchase_is_of_a_known_class(seed: int) -> None:
    now, cloud = a_round(seed)
    picks = LfOSA("head", epochs=20, min_steps=60, lr=0.02).select(now, 30)
    assert bool((cloud[picks] < 2).all())


def test_the_detector_learns_what_is_outside_from_purchases_of_no_class() -> None:
    now, cloud = a_round(0)
    without, _ = a_round(0, outside=0)
    strategy = LfOSA("head", epochs=20, min_steps=60, lr=0.02)
    assert bool((strategy.score(now)[cloud == 2] == -1).all())
    assert bool((strategy.score(without) > -1).all()), "nothing can be predicted unknown before anything unknown was bought"


@pytest.mark.parametrize("detector", ["network", "head"])
def test_purchases_the_oracle_abstained_from_teach_nothing(detector: str) -> None:
    x, cloud = clouds(0)

    def net(num_outputs: int = 2) -> TaskModel:
        return TaskModel(torch.nn.Identity(), 2, num_outputs, companion=net)

    trainer, scores = Trainer("cpu"), []
    with Streams(0).scoped("init"):
        model = net().eval()
    for answer in (OUTSIDE, None):
        pool = Pool(len(x), 2)
        bought = torch.tensor([0, 1, 40, 41, 80, 81, 82, 83])
        pool.reveal(bought, [0, 0, 1, 1, answer, answer, answer, answer])
        now = Round.of_model(model, x, pool, trainer.outputs, Streams(0))
        assert now.discarded_inputs.shape == now.discarded_embeddings.shape == (4, 2)
        assert int(now.outside.sum()) == (4 if answer == OUTSIDE else 0)
        scores.append(LfOSA(detector, epochs=20, min_steps=60, lr=0.02).score(now)[cloud[now.candidates] == 2])  # type: ignore[arg-type]
    assert float((scores[0] == -1).float().mean()) > 0.9
    assert bool((scores[1] > -1).all())


def test_the_cheap_detector_keeps_the_contract() -> None:
    check_strategy(LfOSA("head", epochs=2, min_steps=4))


def test_part_of_a_round_knows_the_same_outsiders() -> None:
    now, _ = a_round(0)
    assert now.subset(torch.tensor([3, 5])).outside.shape == (8,)
    assert len(LfOSA("head", epochs=2).select(now.subset(torch.tensor([3, 5])), 2)) == 2


def test_a_detector_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected detector=network or head, got 'net'"):
        LfOSA("net")  # type: ignore[arg-type]
