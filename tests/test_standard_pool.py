"""The standard setting draws a pool of a given size, and rows stay together wherever they go."""

import pytest
import torch

from alenv.campaign import Plan
from alenv.problem import assemble
from alenv.settings.standard import standard
from alenv.streams import Streams
from alenv.task import Examples, Source, number_ids
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


def test_inputs_labels_and_ids_belong_to_one_row_from_the_source_to_the_records():
    """Every input is its own row number, and its class the number modulo three."""
    rows = torch.arange(200)
    examples = Examples(torch.stack([rows, rows % 3], 1).float(), rows % 3, tuple(f"row{i}" for i in rows.tolist()))
    source = Source("rows", examples, Examples(torch.zeros(3, 2), torch.arange(3), number_ids(3)), ("a", "b", "c"))
    plan = Plan(initial=12, batch=8, rounds=2)
    problem = assemble(dataset=source, setting={"name": "standard", "pool": 90}, strategies=["margin"], plan=plan, device="cpu")
    campaign = problem.campaign(0)
    query = campaign.begin()
    for _ in range(2):
        job = campaign.receive(problem.oracle.label(query.indices))
        assert torch.equal(job.inputs[:, 0].long() % 3, job.targets)
        campaign.advance(problem.trainer.fit(job))
        query = campaign.choose(0)
        bought = [campaign.task.ids[i] for i in campaign.pool.order]
        assert sorted(bought) == sorted(f"row{int(x)}" for x in job.inputs[:, 0])
        assert set(campaign.records[-1].queried) <= set(bought)
        left = {f"row{int(x)}" for x in campaign.round.inputs[:, 0]}
        assert left.isdisjoint(bought)
        assert left | set(bought) == set(campaign.task.ids)
    held = campaign.task.validation
    assert torch.equal(held.inputs[:, 0].long() % 3, held.targets)
    assert set(held.ids).isdisjoint(campaign.task.ids)
