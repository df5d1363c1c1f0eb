"""The pool's ledger of labels, and the oracles that fill it: simulated, noisy, and a person who answers in a file."""

from pathlib import Path

import pytest
import torch

from alenv.oracle import AwaitingLabels, FileOracle, NoisyOracle, Oracle, SimulatedOracle
from alenv.pool import ABSTAINED, HIDDEN, OUTSIDE, Pool
from alenv.streams import Streams
from alenv.task import Examples, Task

CLASSES = ("cat", "dog", "horse")


def a_task(size: int = 6, ids: tuple[str, ...] | None = None, classes: tuple[str, ...] = CLASSES, unknown: int = 0) -> Task:
    targets = torch.arange(size) % len(classes)
    targets[:unknown] = -1
    none = Examples(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ())
    names = ids or tuple(f"id{i}" for i in range(size))
    return Task("toy", "standard", torch.zeros(size, 2), targets, names, none, none, classes, torch.zeros(()), torch.ones(()))


# Pool


def a_pool() -> Pool:
    pool = Pool(6, 3)
    pool.reveal(torch.tensor([4, 1, 5]), [2, None, OUTSIDE])
    return pool


def test_a_new_pool_hides_everything() -> None:
    pool = Pool(3, 2)
    assert pool.labels.tolist() == [HIDDEN] * 3
    assert pool.candidates.tolist() == [0, 1, 2]
    assert (len(pool), pool.bought, len(pool.labeled), len(pool.discarded)) == (3, 0, 0, 0)


def test_revealed_labels_are_known_and_abstained_or_outside_ones_discarded() -> None:
    pool = a_pool()
    assert pool.labels.tolist() == [HIDDEN, ABSTAINED, HIDDEN, HIDDEN, 2, OUTSIDE]
    assert pool.labeled.tolist() == [4]
    assert pool.discarded.tolist() == [1, 5]
    assert pool.candidates.tolist() == [0, 2, 3]
    assert pool.order == [4, 1, 5]
    assert pool.bought == 3


@pytest.mark.parametrize(
    ("indices", "labels", "message"),
    [
        ([0, 4], [1, 1], r"indices \[4\] were bought before"),
        ([0, 1], [1, 1], r"indices \[1\] were bought before"),
        ([0, 5], [1, 1], r"indices \[5\] were bought before"),
        ([0, 0], [1, 1], "revealed twice in one batch"),
        ([0, 6], [1, 1], r"pool indices in 0\.\.5, got 0\.\.6"),
        ([-1, 0], [1, 1], r"pool indices in 0\.\.5, got -1\.\.0"),
        ([0, 2], [1, 3], r"labels in 0\.\.2, None \(abstained\) or OUTSIDE, got \[3\]"),
        ([0, 2], [1, HIDDEN], r"got \[-1\]"),
        ([0, 2], [1, -4], r"got \[-4\]"),
        ([0, 2], [1], r"one label per index \(2\), got 1"),
        ([0], [1, 1], r"one label per index \(1\), got 2"),
    ],
)
def test_a_wrong_reveal_is_refused_and_changes_nothing(indices: list[int], labels: list[int | None], message: str) -> None:
    pool = a_pool()
    with pytest.raises(ValueError, match=message):
        pool.reveal(torch.tensor(indices), labels)
    assert pool.labels.tolist() == a_pool().labels.tolist()
    assert pool.order == [4, 1, 5]


def test_a_state_continues_a_pool_and_is_not_changed_by_what_comes_later() -> None:
    pool, other = a_pool(), Pool(6, 3)
    state = pool.state_dict()
    pool.reveal(torch.tensor([0]), [0])
    other.load_state_dict(state)
    assert other.labels.tolist() == a_pool().labels.tolist()
    assert other.order == [4, 1, 5]
    other.reveal(torch.tensor([3]), [1])
    assert state["labels"].tolist() == a_pool().labels.tolist()
    assert pool.labels.tolist() == [0, ABSTAINED, HIDDEN, HIDDEN, 2, OUTSIDE]


# Simulated and noisy oracles


def ready(oracle: Oracle, task: Task | None = None, seed: int = 0, directory: Path | None = None) -> Oracle:
    oracle.begin(task or a_task(), Streams(seed), directory)
    return oracle


def test_a_simulated_oracle_tells_the_truth_in_the_order_asked() -> None:
    oracle = ready(SimulatedOracle())
    assert oracle.label(torch.tensor([5, 0, 4])) == [2, 0, 1]
    assert oracle.price(torch.tensor([5, 0, 4])) == 3.0
    assert SimulatedOracle(0.25).price(torch.tensor([5, 0, 4])) == 0.75


def test_labels_nobody_knows_cannot_be_simulated() -> None:
    with pytest.raises(ValueError, match=r"2 of 6 pool examples have no label.*use oracle=file"):
        ready(SimulatedOracle(), a_task(unknown=2))


def test_a_noisy_oracle_gives_the_same_item_the_same_answer() -> None:
    oracle = ready(NoisyOracle(0.5, 0.3), a_task(300))
    everything = torch.arange(300)
    answers = oracle.label(everything)
    assert answers == oracle.label(everything)
    assert answers[7:9] == oracle.label(torch.tensor([7, 8]))
    assert answers == ready(NoisyOracle(0.5, 0.3), a_task(300)).label(everything)
    assert answers != ready(NoisyOracle(0.5, 0.3), a_task(300), seed=1).label(everything)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_noisy_oracle_errs_at_its_rate_and_evenly_over_the_other_classes(rate: float) -> None:
    task = a_task(6000)
    answers = torch.tensor(ready(NoisyOracle(rate), task).label(torch.arange(6000)))
    wrong = answers != task.targets
    assert float(wrong.double().mean()) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 6000) ** 0.5)
    if rate:
        shift = ((answers - task.targets) % 3)[wrong]
        assert float((shift == 1).double().mean()) == pytest.approx(0.5, abs=2 / len(shift) ** 0.5)


@pytest.mark.parametrize("abstain", [0.0, 0.25, 1.0])
def test_a_noisy_oracle_abstains_at_its_rate_and_charges_for_it(abstain: float) -> None:
    oracle = ready(NoisyOracle(0.0, abstain, unit_price=2.0), a_task(4000))
    answers = oracle.label(torch.arange(4000))
    assert answers.count(None) / 4000 == pytest.approx(abstain, abs=4 * (abstain * (1 - abstain) / 4000) ** 0.5)
    assert all(answer is None or answer == i % 3 for i, answer in enumerate(answers))
    assert oracle.price(torch.arange(10)) == 20.0


@pytest.mark.parametrize("rates", [(-0.1, 0.0), (1.1, 0.0), (0.0, 2.0)])
def test_rates_that_are_no_probabilities_are_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"rate and abstain in \[0, 1\]"):
        NoisyOracle(*rates)


# A person with a file

ASKED = torch.tensor([3, 0, 4])


def asked(folder: Path, task: Task | None = None) -> tuple[Oracle, Path]:
    """An oracle whose question is on disk."""
    oracle = ready(FileOracle(), task, directory=folder)
    with pytest.raises(AwaitingLabels, match=r"3 labels wanted: fill in the label column of .*query\.csv"):
        oracle.label(ASKED)
    return oracle, folder / "query.csv"


def test_a_file_oracle_needs_a_run_directory() -> None:
    with pytest.raises(ValueError, match="oracle=file needs a run directory"):
        ready(FileOracle())


def test_a_file_oracle_does_not_need_hidden_targets(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path, a_task(unknown=6))
    path.write_text("id,label\nid3,dog\nid0,dog\nid4,cat\n")
    assert oracle.label(ASKED) == [1, 1, 0]


def test_the_question_lists_the_ids_in_order(tmp_path: Path) -> None:
    _, path = asked(tmp_path)
    assert path.read_bytes() == b"id,label\nid3,\nid0,\nid4,\n"
    assert [p.name for p in tmp_path.iterdir()] == ["query.csv"]


def test_an_unanswered_question_keeps_waiting_and_stays_as_it_is(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(AwaitingLabels, match="no label yet"):
            oracle.label(ASKED)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        (("cat", "dog", "horse"), [0, 1, 2]),
        (("2", "0", "1"), [2, 0, 1]),
        (("", "dog", ""), [None, 1, None]),
        (("?", "?", "?"), [None, None, None]),
        (("  horse ", "\tcat", " "), [2, 0, None]),
    ],
)
def test_answers_are_class_names_numbers_blanks_or_question_marks(
    tmp_path: Path, answers: tuple[str, ...], labels: list[int | None]
) -> None:
    oracle, path = asked(tmp_path)
    path.write_text("id,label\n" + "".join(f"id{i},{a}\n" for i, a in zip((3, 0, 4), answers, strict=True)))
    assert oracle.label(ASKED) == labels
    assert path.exists()
    oracle.received()
    assert not path.exists()
    oracle.received()


def test_a_name_that_looks_like_a_number_is_a_name(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path, a_task(classes=("2", "1", "0")))
    path.write_text("id,label\nid3,2\nid0,1\nid4,0\n")
    assert oracle.label(ASKED) == [0, 1, 2]


def test_rows_and_columns_may_come_in_another_order_and_with_more_columns(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path)
    path.write_text("note,label,id\nclear,cat,id4\n,dog,id3\nblurred,horse,id0\n")
    assert oracle.label(ASKED) == [1, 2, 0]


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""], ids=["BOM", "no BOM"])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
@pytest.mark.parametrize("last", [True, False], ids=["last newline", "none"])
def test_files_saved_by_any_spreadsheet_are_read(tmp_path: Path, mark: bytes, end: bytes, last: bool) -> None:
    oracle, path = asked(tmp_path)
    path.write_bytes(mark + end.join([b"id,label", b"id3,cat", b"id0,", b"id4,dog"]) + (end if last else b""))
    assert oracle.label(ASKED) == [0, None, 1]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("hrose", r"'hrose' \(id id0\) is not a class; did you mean 'horse'\?"),
        ("Dog", r"'Dog' \(id id0\) is not a class; did you mean 'dog'\?"),
        ("3", "'3' .* is not a class; the classes are cat, dog, horse"),
        ("-1", "'-1' .* is not a class"),
        ("1.0", "'1.0' .* is not a class"),
        ("zebra-fish", "'zebra-fish' .* is not a class; the classes are cat, dog, horse"),
    ],
)
def test_an_answer_that_is_no_class_is_refused_and_the_file_kept(tmp_path: Path, answer: str, message: str) -> None:
    oracle, path = asked(tmp_path)
    path.write_text(f"id,label\nid3,cat\nid0,{answer}\nid4,dog\n")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        oracle.label(ASKED)
    assert path.read_bytes() == before
    path.write_text("id,label\nid3,cat\nid0,horse\nid4,dog\n")
    assert oracle.label(ASKED) == [0, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\nid3,cat\nid0,dog\n", r"each of the 3 ids asked for, got 2 rows \(missing \['id4'\], unknown \[\]\)"),
        ("id,label\nid3,cat\nid0,dog\nid4,dog\nid5,dog\n", r"got 4 rows \(missing \[\], unknown \['id5'\]\)"),
        ("id,label\nid3,cat\nid0,dog\n04,dog\n", r"missing \['id4'\], unknown \['04'\]"),
        ("id,label\nid3,cat\nid0,dog\nid0,dog\nid4,dog\n", "got 4 rows"),
        ("id,label\n", "got 0 rows"),
        ("", "got 0 rows"),
        ("id;label\nid3;cat\nid0;dog\nid4;cat\n", "expected the columns id,label, got id;label"),
        ("id3,cat\nid0,dog\nid4,cat\n", "expected the columns id,label"),
    ],
)
def test_a_file_that_does_not_fit_the_question_is_refused_and_kept(tmp_path: Path, text: str, message: str) -> None:
    oracle, path = asked(tmp_path)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        oracle.label(ASKED)
    assert path.read_text() == text


def test_ids_with_commas_quotes_and_accents_survive_the_file(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path, a_task(ids=("a,b", "x", "y", 'say "hi", twice', "é/ü.png", "z")))
    text = path.read_text(encoding="utf-8")
    assert text == 'id,label\n"say ""hi"", twice",\n"a,b",\né/ü.png,\n'
    path.write_text(text.replace(",\n", ",dog\n"), encoding="utf-8")
    assert oracle.label(ASKED) == [1, 1, 1]


def test_ids_with_line_breaks_survive_the_file(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path, a_task(ids=("two\nlines", "x", "y", "a\rb", "c\r\nd", "z")))
    path.write_bytes(path.read_bytes().replace(b'",', b'",horse'))
    assert oracle.label(ASKED) == [2, 2, 2]


def test_after_the_answers_are_safe_the_next_question_is_asked(tmp_path: Path) -> None:
    oracle, path = asked(tmp_path)
    path.write_text("id,label\nid3,cat\nid0,dog\nid4,horse\n")
    oracle.label(ASKED)
    oracle.received()
    with pytest.raises(AwaitingLabels, match="2 labels wanted"):
        oracle.label(torch.tensor([1, 2]))
    assert path.read_text() == "id,label\nid1,\nid2,\n"
