"""What has been bought, on disk before anything is trained on it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alenv.campaign import Query
from alenv.durable import append_lines, read_lines, rewrite_lines, write_atomically
from alenv.oracle import AwaitingLabels, charge
from alenv.pool import OUTSIDE

OUTSIDE_NAME = "outside"


class Ledger:
    """`purchases.jsonl`: one line per bought label (round, id, label, target, who, strategy, propensity).

    A round found in the ledger is not bought again: its answers are taken from there, also when the process died between the
    purchase and the end of training.

    Args:
        path: of the file.
        ids: stable ids of the pool.
        classes: class names.
        oracle: anything with `label(indices)`.
    """

    def __init__(self, path: Path, ids: Sequence[str], classes: Sequence[str], oracle: Any) -> None:
        self._path, self._classes, self._oracle = path, classes, oracle
        self._asked = path.with_name("asked.json")  # a question that waits for a person
        self._position = {id_: i for i, id_ in enumerate(ids)}
        rows = read_lines(path)
        unknown = [row["id"] for row in rows if row["id"] not in self._position]
        if unknown:
            raise ValueError(f"{path}: ids {unknown[:3]} are not in the pool; the data have changed since they were bought")
        if path.exists():
            rewrite_lines(path, rows)  # a line cut off by a kill must not swallow the next one
        self._rows: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            self._rows.setdefault(row["round"], []).append(row)

    def buy(self, query: Query) -> tuple[Query, list[int | None], float]:
        """Return the question as it was bought, its labels, and what they cost."""
        known = {row["id"]: row for row in self._rows.get(query.round, [])}
        standing = list(known.values()) or self._waiting(query.round)
        if not {row["id"] for row in standing} <= set(query.ids):
            query = self._as_bought(query, standing)
        if len(known) < len(query.ids):
            self._ask(query, known)
        # rounds repeated from the ledger leave a later question alone
        if all(row["round"] <= query.round for row in self._open_question()):
            received = getattr(self._oracle, "received", None)
            if received is not None:
                received()
            self._asked.unlink(missing_ok=True)
        rows = {row["id"]: row for row in self._rows[query.round]}
        return query, [rows[id_]["target"] for id_ in query.ids], charge(self._oracle, query.indices)

    def _ask(self, query: Query, known: dict[str, Any]) -> None:
        by, propensity = query.chosen_by or ("initial",) * len(query.ids), query.propensity.tolist() or [1.0] * len(query.ids)
        asked = [
            {"round": query.round, "id": id_, "strategy": s, "propensity": p}
            for id_, s, p in zip(query.ids, by, propensity, strict=True)
        ]
        try:
            labels = self._oracle.label(query.indices)
        except AwaitingLabels:
            write_atomically(self._asked, json.dumps(asked))
            raise
        if len(labels) != len(query.ids):
            raise ValueError(f"the oracle gave {len(labels)} answers to {len(query.ids)} questions; it must give one each")
        who = type(self._oracle).__name__
        rows = [
            row | {"label": self._name(label), "target": label, "who": who}
            for row, label in zip(asked, labels, strict=True)
            if row["id"] not in known
        ]
        append_lines(self._path, rows)
        self._rows.setdefault(query.round, []).extend(rows)

    def _waiting(self, round: int) -> list[dict[str, Any]]:
        return [row for row in self._open_question() if row["round"] == round]

    def _open_question(self) -> list[dict[str, Any]]:
        return json.loads(self._asked.read_text(encoding="utf-8")) if self._asked.exists() else []

    def _as_bought(self, query: Query, rows: list[dict[str, Any]]) -> Query:
        """Return the question on file: it stands, even where a device that is not deterministic would now ask another one."""
        device = query.indices.device
        return query._replace(
            indices=torch.tensor([self._position[row["id"]] for row in rows], device=device),
            ids=tuple(row["id"] for row in rows),
            chosen_by=tuple(row["strategy"] for row in rows) if query.round else (),
            propensity=torch.tensor([row["propensity"] for row in rows] if query.round else [], device=device),
            advice=query.advice.new_zeros(len(query.weights), len(rows) if query.round else 0),
        )  # fmt: skip

    def _name(self, label: int | None) -> str | None:
        return None if label is None else OUTSIDE_NAME if label == OUTSIDE else self._classes[label]
