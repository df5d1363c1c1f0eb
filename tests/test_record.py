"""Lines of a learning curve: there and back through JSON, and the area under them."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alenv.record import Record, area_under_curve

START = Record(round=0, labels=2, bought=3, cost=3.0, queried=("a", "b", "c"), strategies=("margin", "uniform"))
LATER = Record(
    round=1, labels=4, bought=5, cost=5.5, queried=("d", "é"), strategies=("margin", "uniform"), action=(0.25, 0.75),
    chosen_by=("margin", "uniform"), propensity=(1.0, 0.1), metrics={"accuracy": 0.1 + 0.2, "nll": None}, validation=1 / 3,
    reward=-0.125, selector={"weight/margin": 0.25}, seconds={"train": 0.5},
)  # fmt: skip


@pytest.mark.parametrize("record", [START, LATER], ids=["round 0", "round 1"])
def test_a_record_comes_back_from_json_as_it_was(record: Record) -> None:
    text = json.dumps(record.to_json(), allow_nan=False)
    assert Record.from_json(json.loads(text)) == record


def test_a_json_object_holds_lists_and_nulls_in_the_agreed_names() -> None:
    assert START.to_json() == {
        "round": 0, "labels": 2, "bought": 3, "cost": 3.0, "queried": ["a", "b", "c"], "strategies": ["margin", "uniform"],
        "action": None, "chosen_by": [], "propensity": [], "metrics": {}, "validation": None, "reward": None, "selector": {},
        "seconds": {},
    }  # fmt: skip
    assert LATER.to_json()["action"] == [0.25, 0.75]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_json_cannot_hold_become_null_wherever_they_stand(bad: float) -> None:
    record = replace(
        LATER, metrics={"nll": bad, "accuracy": 0.5}, selector={"loss": bad}, reward=bad, action=(bad, 1.0), validation=bad
    )
    values = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert values["metrics"] == {"nll": None, "accuracy": 0.5}
    assert values["selector"] == {"loss": None}
    assert (values["reward"], values["action"], values["validation"]) == (None, [None, 1.0], None)


def test_the_area_is_the_trapezoid_over_purchases_divided_by_their_range() -> None:
    # widths 10 and 20: (10 x (.2 + .4) / 2 + 20 x (.4 + .8) / 2) / 30
    assert area_under_curve([10, 20, 40], [0.2, 0.4, 0.8]) == pytest.approx(0.5)
    assert area_under_curve([10, 30], [0.2, 0.4]) == pytest.approx(0.3)


def test_the_area_of_one_point_is_its_value() -> None:
    assert area_under_curve([10], [0.25]) == 0.25
    assert area_under_curve([10, 10], [0.25, 0.75]) == 0.75


@pytest.mark.parametrize(("bought", "values"), [([], []), ([1, 2], [0.5]), ([1], [0.5, 0.6])])
def test_an_area_needs_a_value_for_every_count(bought: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match=rf"at least one, got {len(bought)} counts and {len(values)} values"):
        area_under_curve(bought, values)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=2, max_size=12))
def test_the_area_lies_between_the_extremes_and_of_a_flat_curve_is_its_height(steps: list[tuple[int, float]]) -> None:
    bought = [sum(width for width, _ in steps[: i + 1]) for i in range(len(steps))]
    values = [value for _, value in steps]
    assert min(values) - 1e-9 <= area_under_curve(bought, values) <= max(values) + 1e-9
    assert area_under_curve(bought, [0.5] * len(bought)) == pytest.approx(0.5)
