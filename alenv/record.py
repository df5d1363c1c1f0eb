"""One line of a learning curve."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One finished round: the object written to `rounds.jsonl`.

    Attributes:
        round: 0 is the initial set.
        labels: usable labels so far.
        bought: all purchases so far, discarded ones included; what budgets and areas count.
        cost: what the oracle has charged so far.
        queried: stable ids bought in this round.
        action: (S,) weights; None in round 0.
        strategies: names, in the order of `action`.
        chosen_by: a name per queried id; empty in round 0.
        propensity: per queried id; empty in round 0.
        metrics: on the test split; null where there is none.
        validation: the primary metric on the validation split; null where there is none.
        reward: null in round 0.
        selector: what the selector logged.
        seconds: train, outputs, select, act, evaluate; the only place for times.
    """

    round: int
    labels: int
    bought: int
    cost: float
    queried: tuple[str, ...]
    strategies: tuple[str, ...]
    action: tuple[float, ...] | None = None
    chosen_by: tuple[str, ...] = ()
    propensity: tuple[float, ...] = ()
    metrics: dict[str, float | None] = field(default_factory=dict)
    validation: float | None = None
    reward: float | None = None
    selector: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; numbers that JSON cannot hold become null."""
        return _jsonable(vars(self))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        """Rebuild a record from its JSON object."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**(values | lists))


def area_under_curve(bought: list[int], values: list[float]) -> float:
    """Return the trapezoid of `values` over `bought`, divided by the range of `bought`; the value itself for one point."""
    if len(bought) != len(values) or not bought:
        raise ValueError(
            f"expected as many values as label counts, at least one, got {len(bought)} counts and {len(values)} values"
        )
    if bought[-1] == bought[0]:
        return values[-1]
    pairs = zip(bought, bought[1:], values, values[1:], strict=False)
    return sum((b1 - b0) * (v0 + v1) / 2 for b0, b1, v0, v1 in pairs) / (bought[-1] - bought[0])


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
