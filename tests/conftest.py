"""Small things the tests share."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # tensors here are tiny: threads cost more than they give


@pytest.fixture(autouse=True)
def _global_randomness_is_left_alone() -> Iterator[None]:
    """Every test runs in a fork of torch's global generator and fails if library code moved it without a scope."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "something drew from torch's global generator; use Streams"
