"""The standard setting draws a pool of a given size."""

import pytest

from alenv.settings.standard import standard
from alenv.streams import Streams
from alenv.toy import blobs


def test_a_pool_of_a_given_size_is_drawn_by_the_seed_beside_the_validation_split():
    source = blobs(1)
    one, again, other = (standard(source, 20, Streams(seed), pool=50) for seed in (0, 0, 1))
    assert one.pool.tolist() == again.pool.tolist() == sorted(set(one.pool.tolist()))
    assert len(one.pool) == 50
    assert one.pool.tolist() != other.pool.tolist()
    assert not set(one.pool.tolist()) & set(one.validation.tolist())
    assert standard(source, 20, Streams(0)).validation.tolist() == one.validation.tolist()


@pytest.mark.parametrize("pool", [0, 141])
def test_a_pool_beyond_the_examples_is_refused(pool):
    with pytest.raises(ValueError, match=f"setting.pool={pool}: .* has 1..140 examples for the pool"):
        standard(blobs(1), 20, Streams(0), pool=pool)
