"""Who may import whom (design, section 4) and what no file may do, read off the syntax trees."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BATTERIES = ("datasets", "nets", "settings", "encoders")
PLUGINS = ("strategies", "selectors")
ALLOWED = {
    "strategies": {
        "round", "features", "strategy", "model", "inference", "streams", "ops", "geometry", "gradients", "coverage", "heads",
        "balance",
    },
    "selectors": {
        "selector", "strategy", "ballot", "bandits", "mixing", "rewards", "round", "job", "streams", "ops", "geometry",
        "heads", "model", "campaign", "agents",
    },
}  # fmt: skip
SPEAKERS = ("alenv.doctor", "alenv.catalog")  # commands whose output is their purpose
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
GLOBAL_SEEDS = {
    "torch.manual_seed",
    "torch.seed",
    "torch.set_rng_state",
    "torch.random.manual_seed",
    "torch.random.seed",
    "torch.random.set_rng_state",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "numpy.random.seed",
    "np.random.seed",
    "numpy.random.set_state",
    "np.random.set_state",
    "random.seed",
    "random.setstate",
}


def sources() -> dict[str, str]:
    """Return the text of every module of the library by its dotted name."""
    files = {".".join(["alenv", *f.relative_to(ROOT / "alenv").with_suffix("").parts]): f for f in _python(ROOT / "alenv")}
    for folder in (*PLUGINS, "configs"):
        files |= {".".join(["alenv", *f.relative_to(ROOT).with_suffix("").parts]): f for f in _python(ROOT / folder)}
    return {name.removesuffix(".__init__"): file.read_text(encoding="utf-8") for name, file in files.items()}


def _python(folder: Path) -> Iterator[Path]:
    linked = [child for child in folder.iterdir() if child.is_symlink()]
    return (f for f in sorted(folder.rglob("*.py")) if not any(link in f.parents for link in linked))


def trees(given: dict[str, str]) -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in given.items()}


def imports(tree: ast.AST, modules: set[str], lazy: bool = True) -> Iterator[tuple[str, str | None, int]]:
    """Yield (module, imported name or None, line) of each import, `from package import module` as an import of that module."""
    for node in _statements(tree, lazy):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None, node.lineno) if inner in modules else (node.module or "", alias.name, node.lineno)


def _statements(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """Walk the tree; without `lazy`, only what runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not lazy and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types_only(node)):
            continue
        yield node
        yield from _statements(node, lazy)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def layer(module: str) -> str:
    """Return "core", or the folder of plug-ins, batteries or configurations that a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in (*PLUGINS, *BATTERIES, "configs") else "core"


def trespasses(given: dict[str, str]) -> list[str]:
    """Return every import inside alenv that section 4 of the design forbids."""
    found = []
    for name, tree in trees(given).items():
        for module, member, line in imports(tree, set(given)):
            if module.split(".")[0] == "alenv" and not _may(name, module, member):
                found.append(f"{name}:{line} imports {module}" + (f" ({member})" if member else ""))
    return found


def _may(name: str, module: str, member: str | None) -> bool:
    mine, theirs = layer(name), layer(module)
    if mine == "core":
        return theirs == "core"
    if mine in BATTERIES:
        return theirs in ("core", mine)
    if mine == "configs" or theirs != "core" or module == "alenv":
        return False
    if module == "alenv.campaign":
        return mine == "selectors" and member == "weights_action"
    return module.split(".")[1] in ALLOWED[mine]


def cycle(given: dict[str, str]) -> list[str] | None:
    """Return the modules of an import cycle, if importing alenv's modules can run into one."""
    parsed = trees(given)
    needs = {name: {m for m, _, _ in imports(tree, set(given), lazy=False) if m in given} for name, tree in parsed.items()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def facades(given: dict[str, str]) -> list[str]:
    """Return imports of a name from an alenv module that does not define it."""
    parsed = trees(given)
    defined = {name: _defined(tree) for name, tree in parsed.items()}
    return [
        f"{name}:{line} imports {member} from {module}, which does not define it"
        for name, tree in parsed.items()
        for module, member, line in imports(tree, set(given))
        if member is not None and module in given and member not in defined[module]
    ]


def _defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def habits(given: dict[str, str]) -> list[str]:
    """Return what no file of the library may do: star or relative imports, print, pickle, `.cuda()`, seeding globally."""
    found: list[str] = []
    for name, tree in trees(given).items():
        found += [f"{name}:{line} {what}" for what, line in _bad_imports(tree)]
        found += [
            f"{name}:{node.lineno} {what}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and (what := _bad_call(name, node))
        ]
    return found


def _bad_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "imports relatively", node.lineno
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"imports * from {node.module}", node.lineno
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if any(name.split(".")[0] in PICKLERS for name in names):
            yield "imports a pickler", getattr(node, "lineno", 0)


def _bad_call(name: str, node: ast.Call) -> str | None:
    called = ast.unparse(node.func)
    if called == "print" and name not in SPEAKERS:
        return "prints"
    if called in ("torch.load", "torch.save") or any(word.arg == "allow_pickle" for word in node.keywords):
        return f"calls {called}, which pickles"
    if called in GLOBAL_SEEDS and name != "alenv.streams":
        return f"calls {called}; use Streams"
    if called.endswith(".cuda") and isinstance(node.func, ast.Attribute):
        return "calls .cuda(); tensors live where the pool lives"
    if called.endswith(".cpu") and layer(name) == "strategies":
        return "calls .cpu(); tensors live where the pool lives"
    return None


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    return sources()


def test_the_walk_sees_the_whole_library(library: dict[str, str]) -> None:
    files = {f.stem for folder in PLUGINS for f in (ROOT / folder).glob("*.py")} | {
        f.stem for f in (ROOT / "alenv").glob("[!_]*.py")
    }
    assert files <= {name.split(".")[-1] for name in library}
    assert {layer(name) for name in library} == {"core", "configs", *PLUGINS, *BATTERIES}
    assert not any(name.startswith("alenv.alenv") for name in library)


def test_imports_keep_to_the_layers_of_the_design(library: dict[str, str]) -> None:
    assert trespasses(library) == []


def test_no_module_imports_itself_through_others(library: dict[str, str]) -> None:
    assert cycle(library) is None


def test_names_come_from_the_module_that_defines_them(library: dict[str, str]) -> None:
    assert facades(library) == []


def test_no_file_prints_pickles_seeds_or_moves_tensors_by_hand(library: dict[str, str]) -> None:
    assert habits(library) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alenv.env", "from alenv.strategies.margin import Margin"),
        ("alenv.problem", "def f():\n    from alenv.datasets import digits"),
        ("alenv.checks", "import alenv.configs"),
        ("alenv.library", "from alenv.selectors import fixed"),
        ("alenv.nets.linear", "from alenv.settings.standard import standard"),
        ("alenv.nets.linear", "from alenv.strategies.margin import Margin"),
        ("alenv.strategies.margin", "from alenv.env import ActiveLearningEnv"),
        ("alenv.strategies.margin", "from alenv.strategies.entropy import Entropy"),
        ("alenv.strategies.margin", "from alenv import env"),
        ("alenv.strategies.margin", "import alenv"),
        ("alenv.strategies.margin", "from alenv.ballot import Ballot"),
        ("alenv.strategies.margin", "from alenv.datasets.digits import digits"),
        ("alenv.selectors.fixed", "from alenv.campaign import Campaign"),
        ("alenv.selectors.fixed", "import alenv.campaign"),
        ("alenv.selectors.fixed", "from alenv.selectors.albl import ALBL"),
        ("alenv.selectors.fixed", "from alenv.strategies.margin import Margin"),
        ("alenv.selectors.fixed", "from alenv.problem import Problem"),
        ("alenv.configs", "from alenv import library"),
    ],
)
def test_a_forbidden_import_is_noticed(name: str, text: str) -> None:
    known = dict.fromkeys(
        ["alenv", "alenv.env", "alenv.library", "alenv.campaign", "alenv.selectors.fixed", "alenv.datasets.digits"], ""
    )
    assert len(trespasses({**known, name: text})) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "alenv.strategies.margin",
            "import torch\nfrom alenv import ops\nfrom alenv.heads import Head\nfrom alenv.round import Round",
        ),
        ("alenv.selectors.fixed", "from alenv.campaign import weights_action\nfrom alenv.mixing import Mixing"),
        ("alenv.nets.linear", "from alenv.nets.mlp import mlp\nfrom alenv.model import TaskModel"),
        ("alenv.problem", "from alenv import library"),
    ],
)
def test_a_permitted_import_is_left_alone(name: str, text: str) -> None:
    assert trespasses({"alenv": "", "alenv.ops": "", "alenv.library": "", name: text}) == []


def test_a_cycle_is_noticed_unless_it_is_for_types_or_inside_a_function() -> None:
    one = "from alenv.b import B\nclass A: ..."
    assert cycle({"alenv.a": one, "alenv.b": "from alenv.a import A\nclass B: ..."})
    assert cycle({"alenv": "", "alenv.a": one, "alenv.b": "try:\n    from alenv import a\nexcept ImportError: ..."})
    assert cycle({"alenv.a": one, "alenv.b": "if TYPE_CHECKING:\n    from alenv.a import A\nclass B: ..."}) is None
    assert cycle({"alenv.a": one, "alenv.b": "def f():\n    from alenv.a import A\nclass B: ..."}) is None


def test_an_import_through_a_third_module_is_noticed() -> None:
    given = {"alenv.a": "class A: ...", "alenv.b": "from alenv.a import A", "alenv.c": "from alenv.b import A"}
    assert facades(given) == ["alenv.c:1 imports A from alenv.b, which does not define it"]


@pytest.mark.parametrize(
    "text",
    [
        "from alenv.ops import *",
        "from . import ops",
        "from ..round import Round",
        "print(1)",
        "import pickle",
        "import joblib",
        "def f():\n    from pickle import dumps",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "x.cuda()",
        "x.y.cpu()",
        "torch.manual_seed(0)",
        "np.random.seed(0)",
        "random.seed(0)",
    ],
)
def test_a_bad_habit_is_noticed(text: str) -> None:
    assert len(habits({"alenv.strategies.margin": text})) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alenv.doctor", "print(1)"),
        ("alenv.streams", "torch.random.manual_seed(1)"),
        ("alenv.ops", "torch.Generator().manual_seed(0)"),
        ("alenv.record", "x.cpu()"),
        ("alenv.progress", "console.print(1)"),
    ],
)
def test_a_good_habit_is_left_alone(name: str, text: str) -> None:
    assert habits({name: text}) == []
