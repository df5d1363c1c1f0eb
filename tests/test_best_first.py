"""The highest scores, against a full sort of the shuffled scores."""

import pytest
import torch

from alenv.strategy import best_first
from alenv.streams import Streams

CASES = {
    "distinct": lambda n: torch.randperm(n, generator=Streams(1)("scores")).float(),
    "some alike": lambda n: torch.randint(0, 3 * n, (n,), generator=Streams(1)("scores")).float(),
    "many alike": lambda n: torch.randint(0, 4, (n,), generator=Streams(1)("scores")).float(),
    "all alike": torch.ones,
    "some ruled out": lambda n: torch.where(torch.arange(n) % 8 == 3, torch.arange(n), -torch.inf),
    "the last one in and the first one out alike": lambda n: -(torch.arange(n) - (torch.arange(n) == 5).int()).float(),
}


def sorted_whole(scores, generator, count):
    lot = torch.randperm(len(scores), generator=generator)
    return lot[torch.sort(scores[lot], descending=True, stable=True).indices][:count]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [1, 5, 40, 299, 300, None])
def test_picks_and_their_order_are_those_of_a_full_sort(case, count):
    scores = CASES[case](300)
    ours, theirs = Streams(0)("ties"), Streams(0)("ties")
    found = best_first(scores, ours, count)
    assert torch.equal(found, sorted_whole(scores, theirs, count))
    assert torch.equal(ours.get_state(), theirs.get_state())  # whoever draws next draws the same, ties or none
    assert torch.equal(best_first(scores, lambda: Streams(0)("ties"), count), found)


def test_a_generator_is_not_even_made_where_no_two_scores_are_equal():
    picks = best_first(CASES["distinct"](300), lambda: pytest.fail("somebody asked for lots"), 5)
    assert torch.equal(picks, CASES["distinct"](300).topk(5).indices)


def test_equal_scores_fall_by_lot_where_only_some_of_them_fit():
    scores = CASES["the last one in and the first one out alike"](300)
    picks = {int(best_first(scores, Streams(seed)("ties"), 5)[-1]) for seed in range(20)}
    assert picks == {4, 5}
