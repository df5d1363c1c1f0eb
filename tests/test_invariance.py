"""What no strategy's picks may depend on: how the pool is cut, in which order and precision it comes; and models gone NaN."""

import sys

import pytest
import torch

from alenv import library, toy
from alenv.round import Round

STRATEGIES = library.names("strategy")
ARRAYS = ("probs", "logits", "embeddings", "labeled_embeddings", "discarded_embeddings", "mc_probs")
OF_THE_MODEL = {"probs", "logits", "mc_probs", "head", "model"}  # what a head gone NaN spoils
NETS_OF_THEIR_OWN = {"lfosa"}  # of the model they read the family alone


def started(name):
    strategy = library.build("strategy", name)
    return strategy, toy.World(strategy, torch.device("cpu"))


def draws(strategy, world, budget=12):
    """Whether another lot gives another batch."""
    return len({frozenset(strategy.select(world.round(index=i), budget).tolist()) for i in (1, 2, 3)}) > 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_size_of_blocks_changes_no_pick(name, monkeypatch):
    strategy, world = started(name)
    whole = strategy.select(world.round(), 12)
    for elements in (70, 1000):
        for module in [module for key, module in sys.modules.items() if key.startswith("alenv.")]:
            if hasattr(module, "CHUNK_ELEMENTS"):
                monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
        monkeypatch.setattr("alenv.round.BLOCK_ELEMENTS", elements)
        assert strategy.select(world.round(), 12).tolist() == whole.tolist()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_order_of_the_pool_changes_no_pick_where_nothing_is_drawn(name):
    strategy, world = started(name)
    if draws(strategy, world):
        pytest.skip("its lots go by position")
    lot = torch.randperm(world.size, generator=world.streams("order"))
    moved = lot[strategy.select(world.round(order=lot), 12)]
    assert set(moved.tolist()) == set(strategy.select(world.round(), 12).tolist())


@pytest.mark.parametrize(
    "name",
    [name for name in STRATEGIES if not library.build("strategy", name).needs & {"inputs", "model"}],
)
def test_double_precision_buys_what_single_precision_does_where_nothing_is_drawn(name):
    strategy, world = started(name)
    seen = world.round()

    def bought(dtype):
        features = {need[9:]: seen.features(need[9:]) for need in strategy.needs if need.startswith("features:")}
        now = Round.from_arrays(
            **{array: getattr(seen, array).to(dtype) for array in ARRAYS}, num_classes=toy.CLASSES, labels=seen.labels,
            head=tuple(part.to(dtype) for part in seen.head), aux={key: value.to(dtype) for key, value in seen.aux.items()},
            features={key: (value.candidates.to(dtype), value.labeled.to(dtype)) for key, value in features.items()},
        )  # fmt: skip
        return set(strategy.select(now, 12).tolist())

    double, single = bought(torch.float64), bought(torch.float32)
    assert len(double) == len(single) == 12
    assert double == single or draws(strategy, world)


@pytest.mark.parametrize(
    "name", [n for n in STRATEGIES if library.build("strategy", n).needs & OF_THE_MODEL and n not in NETS_OF_THEIR_OWN]
)
def test_a_model_gone_nan_is_refused(name):
    strategy, world = started(name)
    with torch.no_grad():
        world.model.linear.weight.fill_(torch.nan)
    now = world.round()
    now._values.pop("heads")  # of the model before
    with pytest.raises(ValueError, match="NaN"):
        strategy.select(now, 5)
