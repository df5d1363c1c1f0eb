"""The page on strategies: what it reads off them, what each has to say, and that the copy in `docs/` is current."""

import re
import sys
from pathlib import Path

import pytest

from alenv import catalog, library
from alenv.strategy import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "strategies.md"
STRATEGIES = library.names("strategy")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_tells_its_family_source_rule_cost_and_parameters(name):
    told = catalog.entry(name)
    assert told.family in FAMILIES, f"give the class a family, one of {', '.join(FAMILIES)}"
    assert len(told.source) > 20, "name the paper in the head of the file"
    assert told.rule.endswith((".", ")")), "the docstring's first sentence is the rule"
    assert not told.rule.startswith("O("), "the rule comes before the cost"
    assert re.match(r"O\(|With .*, O\(", told.cost), "a sentence of the docstring starts with the cost, O(...)"
    undescribed = [p.name for p in told.parameters if not p.text]
    assert not undescribed, "describe them under Args: in the docstring of the class"


def test_the_page_in_docs_is_current():
    assert PAGE.read_text(encoding="utf-8") == catalog.page(), "run: python -m alenv.catalog --write docs/strategies.md"


def test_the_page_has_a_row_and_a_section_for_every_strategy():
    text = catalog.page()
    sections = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert sorted(sections) == STRATEGIES
    assert re.findall(r"^\| \[(\w+)\]\(#\1\) \|", text, re.MULTILINE) == sections, "in the same order"
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}, "bars inside a cell are escaped"


def test_a_docstring_is_read_by_sentence_and_heading():
    rule, cost, parameters = catalog.described(
        "Buy p_(1) - 0.5, e.g. it is\nlow. O(U C), memory U. Not this.\n\nMore, for N > 3. With P = C D, O(P) after that.\n\n"
        "Args:\n    one: the first, in nats: as\n        it goes on. And on.\n    two_2: 3.\n\nAttributes:\n    three: no."
    )
    assert rule == "Buy p_(1) - 0.5, e.g. it is low."
    assert cost == "O(U C), memory U. With P = C D, O(P) after that."
    assert parameters == {"one": "the first, in nats: as it goes on. And on.", "two_2": "3."}


def test_a_docstring_of_one_sentence_has_no_cost_and_no_parameters():
    assert catalog.described("Buy by lot.") == ("Buy by lot.", "", {})


def test_an_entry_holds_what_is_in_the_file_and_the_defaults():
    told = catalog.entry("prefilter")
    assert told.family == "wrapper"
    assert "Zhdanov" in told.source
    assert [(p.name, p.value) for p in told.parameters] == [
        (key, value) for key, value in library.config("strategy", "prefilter").items() if key != "_target_"
    ]
    mode = catalog.entry("variation_ratio").parameters[0]
    assert (mode.name, mode.value) == ("mode", "vote")


def test_prose_means_nothing_to_markdown_but_code_does():
    assert catalog._escaped("x* and `y*` < [0, 1]") == r"x\* and `y*` \< \[0, 1\]"


def test_the_page_is_written_where_one_says(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["alenv-list", "--write", str(tmp_path / "page.md")])
    catalog.main()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == catalog.page()
    assert capsys.readouterr().out == ""


def listed(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys, "argv", ["alenv-list"])
    monkeypatch.setattr(catalog, "_someone_looks", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "60")
    catalog.main()
    return capsys.readouterr().out.splitlines()


def test_a_long_list_is_folded_to_the_terminal_and_nowhere_else(monkeypatch, capsys):
    lines = listed(monkeypatch, capsys, terminal=True)
    assert max(map(len, lines)) <= 60
    assert all(line.startswith("  ") or line.split(":")[0] in library.GROUPS for line in lines)
    assert " ".join("\n".join(lines).replace("\n  ", " ").split()) == " ".join(
        " ".join(listed(monkeypatch, capsys, False)).split()
    )
    assert all(line.split(":")[0] in library.GROUPS for line in listed(monkeypatch, capsys, terminal=False))
