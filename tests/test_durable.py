"""Files that survive a kill."""

import os
from pathlib import Path

import pytest

from alenv import durable
from alenv.durable import append_lines, read_lines, rewrite_lines, write_atomically

LINES = [{"round": 0, "queried": ["é", "b\nc"]}, {"round": 1, "reward": None}]


def test_lines_come_back_as_they_were_appended(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_lines(path, LINES[:1])
    append_lines(path, LINES[1:])
    assert read_lines(path) == LINES
    assert path.read_bytes().count(b"\n") == 2
    assert "é" in path.read_text(encoding="utf-8")


def test_an_absent_or_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "empty.jsonl").touch()
    assert read_lines(tmp_path / "empty.jsonl") == []


def test_a_last_line_cut_off_at_any_byte_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_lines(path, [LINES[1], LINES[0]])  # the accents in the last line
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert read_lines(path) == [LINES[1]]
    for end in range(first - 1):
        path.write_bytes(whole[:end])
        assert read_lines(path) == []


def test_a_whole_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_lines(path, LINES[:2])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_lines(path) == LINES[:2]


@pytest.mark.parametrize("damage", ['{"round": 1, "rew', "", "\0\0\0", '{"round": 1}}'])
def test_a_damaged_line_in_the_middle_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 0}\n' + damage + '\n{"round": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rounds\.jsonl: a line is damaged .*; restore the file from a copy"):
        read_lines(path)


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_lines(path, LINES)
    for write in (append_lines, rewrite_lines):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(path, [{"round": 3}, {"reward": float("nan")}])
    assert read_lines(path) == LINES


def test_lines_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    append_lines(path, LINES * 3)
    rewrite_lines(path, LINES)
    assert read_lines(path) == LINES
    rewrite_lines(path, [])
    assert read_lines(path) == []


@pytest.mark.parametrize("content", ["text with é\n", b"\x00\xff"])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_kill_before_the_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, "new, but never finished")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("summary.json", "new")]


def test_lines_and_replacements_are_on_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, real = tmp_path / "rounds.jsonl", [], os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(durable.os, "fsync", watched)
    append_lines(path, LINES)
    assert synced == [path.stat().st_ino]
    rewrite_lines(path, LINES)
    assert synced[1:] == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_what_need_not_wait_for_the_disk_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise AssertionError(f"waited for {descriptor}")

    monkeypatch.setattr(durable.os, "fsync", refuse)
    path = tmp_path / "rounds.jsonl"
    rewrite_lines(path, LINES[:1], sync=False)
    append_lines(path, LINES[1:], sync=False)
    assert read_lines(path) == LINES
