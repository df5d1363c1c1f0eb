"""Generated data in the plane: Honeypot and Diverging Sine."""

import pytest
import torch

from alenv import library
from alenv.datasets.diverging_sine import diverging_sine
from alenv.datasets.honeypot import honeypot


@pytest.mark.parametrize(("make", "count"), [(honeypot, 600), (diverging_sine, 200)])
def test_four_fifths_are_for_training_and_their_range_is_the_unit_square(make: type, count: int) -> None:
    source = make()
    assert (len(source.train), len(source.test)) == (0.8 * count, 0.2 * count)
    scaled = (source.train.inputs - source.mean) / source.std
    assert torch.allclose(scaled.amin(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(scaled.amax(0), torch.ones(2), atol=1e-6)
    both = torch.cat([source.train.targets, source.test.targets])
    assert torch.bincount(both).tolist() == [count / 2, count / 2]


@pytest.mark.parametrize("make", [honeypot, diverging_sine])
def test_points_are_a_function_of_the_seed(make: type) -> None:
    assert torch.equal(make(seed=1).train.inputs, make(seed=1).train.inputs)
    assert not torch.equal(make(seed=1).train.inputs, make(seed=2).train.inputs)


def test_half_of_the_honeypots_points_are_in_the_cluster_of_noise() -> None:
    source = honeypot(size=20_000)
    x, y = source.train.inputs, source.train.targets
    for mean, target in (((0.0, 0.0), 1), ((0.0, 6.0), 0)):
        near = (x - torch.tensor(mean)).norm(dim=1) < 1
        assert (y[near] == target).float().mean() > 0.99
        assert near.float().mean() == pytest.approx(0.25 * 0.3935, abs=0.01)  # a quarter, of which 1 - exp(-1/2) within 1
    trap = (x - torch.tensor([4.0, 3.0])).norm(dim=1) < 1
    assert y[trap].float().mean() == pytest.approx(0.5, abs=0.02)
    assert trap.float().mean() == pytest.approx(0.5 * 0.3935, abs=0.01)


def test_the_sines_part_to_the_right() -> None:
    source = diverging_sine(size=20_000)
    x, y = source.train.inputs.unbind(1)
    side = source.train.targets * 2 - 1
    rest = y - torch.sin(2 * x) - side * x / 2
    assert rest.std() == pytest.approx(0.3, abs=0.01)
    assert rest.mean() == pytest.approx(0, abs=0.01)
    assert (x.min(), x.max()) == (pytest.approx(0, abs=0.01), pytest.approx(10, abs=0.01))


def test_the_library_knows_them() -> None:
    assert library.build("dataset", "honeypot").classes == ("negative", "positive")
    assert library.build("dataset", {"name": "diverging_sine", "size": 50}).name == "diverging_sine"
