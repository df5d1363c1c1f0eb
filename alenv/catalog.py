"""`alenv-list`: what there is a name for; with `--write docs/strategies.md`, the page on strategies."""

import argparse
import inspect
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from alenv import library

HEAD = """# Query strategies

Made by `python -m alenv.catalog --write docs/strategies.md` of what each strategy says of itself: change it there.
A strategy is named on the command line (`strategies=[badge,coreset]`, `selector.strategy=badge`), built by
`alenv.library.build("strategy", "badge")`, and called on the outputs of any model: `Badge().select(Round.from_arrays(...), 100)`.

N pool, U candidates, L labelled, X discarded, C classes, D features, T stochastic draws, B labels bought per round.
"Needs" is what a strategy reads of a round; a task that lacks it is refused before a run starts. Values are those of the YAML
file. Wrappers take other strategies, `strategies=[{name: prefilter, by: margin, inner: {name: kmeans, iterations: 10}}]`, and
need what these need. The sets `autoal7`, `alscope21` and `all` (`strategies=all`) can be taken in part:
`strategies={set: alscope21, without: [ccal, mqnet]}`.
"""


class Parameter(NamedTuple):
    """A parameter of a strategy: what it is unless one says otherwise, and what the docstring says of it."""

    name: str
    value: Any
    text: str


class Entry(NamedTuple):
    """What a strategy says of itself, see `alenv.strategy.Strategy`."""

    name: str
    family: str
    source: str
    rule: str
    cost: str
    needs: tuple[str, ...]
    parameters: tuple[Parameter, ...]


def main() -> None:
    """Print the names in each group; with arguments, in those groups only; or write the page on strategies."""
    parser = argparse.ArgumentParser(prog="alenv-list", description="What there is a name for.")
    parser.add_argument("groups", nargs="*", metavar="group", help=f"one of {', '.join(library.GROUPS)} (default: all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page on strategies instead")
    given = parser.parse_args()
    if given.write:
        given.write.write_text(page(), encoding="utf-8")
        return
    for group in given.groups or library.GROUPS:
        try:
            found = library.names(group)
        except ValueError as error:
            sys.exit(f"alenv: {error}")
        if found:
            sys.stdout.write(_folded(f"{group}: {', '.join(found)}") + "\n")


def entry(name: str) -> Entry:
    """Return what the strategy called `name` says of itself."""
    given = library.config("strategy", name)
    cls = library.resolve(given["_target_"])
    rule, cost, told = described(inspect.getdoc(cls) or "")
    accepted = inspect.signature(cls).parameters.values()
    return Entry(
        name=name,
        family=cls.family,
        source=_line(inspect.getdoc(sys.modules[cls.__module__]) or ""),
        rule=rule,
        cost=cost,
        needs=tuple(sorted(library.build("strategy", name).needs)),
        parameters=tuple(Parameter(p.name, given.get(p.name, p.default), told.get(p.name, "")) for p in accepted),
    )


def described(docstring: str) -> tuple[str, str, dict[str, str]]:
    """Return a class docstring's first sentence, the sentences on cost, and its parameters by name."""
    prose, _, rest = docstring.partition("\nArgs:\n")
    sentences = [s for block in prose.split("\n\n") for s in re.split(r"(?<=[.])\s+(?=[A-Z])", _line(block))]
    cost = " ".join(s for s in sentences if re.match(r"(With .*, )?O\(", s))
    section = re.split(r"\n(?=\S)", rest)[0]  # up to the next heading
    items = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return sentences[0], cost, {key: _line(text) for key, text in items}


def page() -> str:
    """Return `docs/strategies.md`."""
    from alenv.strategy import FAMILIES  # here: torch is not needed to know what there are names for

    entries = sorted(map(entry, library.names("strategy")), key=lambda e: (FAMILIES.index(e.family), e.name))
    rows = [f"| [{e.name}](#{e.name}) | {e.family} | {_code(e.needs)} | {_cell(e.cost.rstrip('.'))} |" for e in entries]
    parts = [HEAD, "\n".join(["| strategy | family | needs | cost |", "|---|---|---|---|", *rows]) + "\n"]
    for family in FAMILIES:
        members = [e for e in entries if e.family == family]
        parts += [f"## {family}\n"] * bool(members) + [_section(e) for e in members]
    return "\n".join(parts)


def _section(e: Entry) -> str:
    lines = [f"### {e.name}\n", f"{_escaped(e.rule)}\n", f"- Source: {_escaped(e.source)}", f"- Needs: {_code(e.needs)}"]
    lines += [f"- Cost: {_escaped(e.cost)}"] * bool(e.cost)
    for p in e.parameters:
        value = p.value if isinstance(p.value, str) else json.dumps(p.value)  # as in YAML and on the command line
        lines.append(f"- `{p.name}={value}`: {_escaped(p.text)}")
    return "\n".join(lines) + "\n"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _cell(text: str) -> str:
    return _escaped(text).replace("|", r"\|")


def _escaped(text: str) -> str:
    """Return prose in which nothing but `code` means something to Markdown."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([*<\[\]])", r"\\\1", part) for i, part in enumerate(parts))


def _line(text: str) -> str:
    return " ".join(text.split())


def _folded(line: str) -> str:
    """Return `line` folded to the terminal's width; as it is where nobody looks, so that one line stays one group."""
    if not _someone_looks():
        return line
    return textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent="  ", break_on_hyphens=False)


def _someone_looks() -> bool:
    return sys.stdout.isatty()


if __name__ == "__main__":
    main()
