"""Named randomness: addressed by seed, name and round, and by nothing that happened before."""

import itertools
import random

import numpy as np
import pytest
import torch

from alenv.streams import Streams


def numbers(streams: Streams, name: str = "a", round: int = 0) -> list[float]:
    return torch.rand(5, generator=streams(name, round)).tolist()


def global_states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tolist(), *rest), torch.random.get_rng_state().tolist()


def global_draws() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_stream_starts_over_whenever_it_is_asked_for() -> None:
    streams = Streams(3)
    first = numbers(streams)
    numbers(streams, "b")
    numbers(streams, "a", 1)
    assert numbers(streams) == first == numbers(Streams(3))


def test_every_name_round_and_seed_has_draws_of_its_own() -> None:
    addresses = itertools.product((0, 1, -1, 10**12), ("", "a", "b", "a0"), (0, 1, 2, 10))
    draws = [numbers(Streams(seed), name, index) for seed, name, index in addresses]
    assert len({tuple(d) for d in draws}) == len(draws) == 64


def test_name_round_and_seed_do_not_run_into_each_other() -> None:
    assert Streams(1).key("1", 1) != Streams(11).key("", 1) != Streams(1).key("11", 0)
    assert Streams(1).key("a", 12) != Streams(1).key("a1", 2)


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert Streams(0).key("initial") == 4466239916158263123
    assert Streams(7).key("mixing", 3) == 5647472617040411865


def test_keys_fit_into_63_bits_and_a_numpy_seed_makes_the_same_family() -> None:
    assert all(0 <= Streams(seed).key("x", index) < 2**63 for seed in range(40) for index in range(40))
    assert numbers(Streams(np.int64(5))) == numbers(Streams(5))


def test_the_same_family_on_a_device_has_the_same_keys() -> None:
    moved = Streams(5).on("cpu")
    assert moved.device == torch.device("cpu")
    assert moved.key("a", 2) == Streams(5).key("a", 2)
    assert moved("a").device == torch.device("cpu")


def test_drawing_from_streams_leaves_the_global_generators_alone() -> None:
    before = global_states()
    numbers(Streams(0))
    assert global_states() == before


def test_a_scope_seeds_python_numpy_and_torch_and_puts_them_back() -> None:
    before = global_states()
    with Streams(0).scoped("init"):
        first = global_draws()
        assert global_states() != before
    assert global_states() == before
    with Streams(0).scoped("init"):
        assert global_draws() == first
    for streams, name, index in ((Streams(1), "init", 0), (Streams(0), "other", 0), (Streams(0), "init", 1)):
        with streams.scoped(name, index):
            other = global_draws()
        assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_scope_does_not_depend_on_the_state_outside() -> None:
    with Streams(0).scoped("one"):
        with Streams(0).scoped("inner"):
            first = global_draws()
        after = global_draws()
    with Streams(0).scoped("two"), Streams(0).scoped("inner"):
        assert global_draws() == first
    with Streams(0).scoped("one"):
        assert global_draws() == after  # the inner scope did not advance the outer one


def test_a_scope_that_fails_puts_the_generators_back() -> None:
    def failing() -> None:
        with Streams(0).scoped("init"):
            global_draws()
            raise KeyError

    before = global_states()
    with pytest.raises(KeyError):
        failing()
    assert global_states() == before


def test_a_normal_variate_cached_by_numpy_survives_a_scope() -> None:
    with Streams(0).scoped("outer"):
        np.random.randn()  # numpy keeps the second of a pair
        state = global_states()
        with Streams(0).scoped("inner"):
            np.random.randn()
        assert global_states() == state
