"""Names -> things: the YAML files of `configs/`, resolved from an allow-list plus what the user names."""

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

GROUPS = (
    "strategy",
    "candidates",
    "selector",
    "dataset",
    "setting",
    "net",
    "trainer",
    "reward",
    "oracle",
    "encoder",
    "executor",
    "experiment",
    "preset",
)
OPTIONS = ("experiment", "preset")  # sets of options under one name
ALLOWED = "alenv."
EVERYTHING = "*"  # in a candidate set: every strategy that can be made without parameters


def names(group: str) -> list[str]:
    """Return the names in a group (see `GROUPS`), sorted."""
    _check(group, GROUPS, "group")
    folder = resources.files("alenv.configs").joinpath(group)
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml")) if folder.is_dir() else []


def config(group: str, name: str) -> dict[str, Any]:
    """Return the content of one YAML file. An unknown name raises ValueError with the nearest one."""
    _check(name, names(group), group)
    text = resources.files("alenv.configs").joinpath(group, f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text) or {}


def build(group: str, name: Any, **overrides: Any) -> Any:
    """Return the thing called `name` in `group`.

    Args:
        group: one of `GROUPS`.
        name: a name; a mapping with `name` (or `_target_`) and parameters; "module:Class" for your own; or the thing
            itself, which is returned as it is.
        overrides: parameters that replace those of the file.

    Returns:
        The object; for `candidates` the strategies by name; for functions that need more arguments (nets, settings) a partial.

    Raises:
        ValueError: unknown name or parameter (the nearest is offered), or a `_target_` outside the allow-list.
    """
    _check(group, GROUPS, "group")
    if group == "candidates":
        return strategies(name)
    if group in OPTIONS:
        command = "train" if group == "experiment" else "compare"
        raise ValueError(f"{group} {name} is a set of options, nothing to build; run python -m alenv.{command} {group}={name}")
    if isinstance(name, Mapping):
        given = {**name, **overrides}
        if "_target_" in given:
            return _call(given)
        if "name" not in given:
            raise ValueError(f"{group}: expected a mapping with 'name' and parameters, got {dict(name)}")
        return build(group, given.pop("name"), **given)
    if not isinstance(name, str):
        return name
    if ":" in name:
        return _call({"_target_": name, **overrides})
    return _call({**config(group, name), **overrides})


def strategies(spec: Any, required: Iterable[str] = ()) -> dict[str, Any]:
    """Return strategies by name.

    Args:
        spec: the name of a candidate set ("autoal7", "all"), or {set: its name, without: [names]}; a list whose items are names,
            mappings with `name` and parameters, or "module:Class"; or a mapping from names of your own to such items or to
            strategies. A wrapper takes strategies as parameters, in the same way: {name: subsample, inner: badge}.
        required: names appended if they are missing.
    """
    if isinstance(spec, Mapping) and isinstance(spec.get("set"), str):
        for key in spec:
            _check(key, ["set", "without"], "key of strategies={set: ...}")
        spec = _candidates(**spec)
    if isinstance(spec, Mapping) and spec and not {"name", "_target_"} & spec.keys():
        named = {**spec, **{name: name for name in required if name not in spec}}
        return {label: build("strategy", item) for label, item in named.items()}
    listed: list[Any]
    if isinstance(spec, Mapping):
        listed = [spec] if spec else []
    elif isinstance(spec, str):
        listed = [spec] if ":" in spec else _candidates(spec)
    else:
        listed = list(spec)
    there = [label(item) for item in listed]
    items = [*listed, *(name for name in required if name not in there)]
    if not items:
        raise ValueError("expected at least one candidate strategy, got an empty list; name some, or use strategies=autoal7")
    built: dict[str, Any] = {}
    for item in items:
        strategy = build("strategy", item)
        called = _called(item, strategy)
        if called in built:
            called = _called(item, strategy, parameters=True)
        if called in built:
            raise ValueError(f"strategy '{called}' is listed twice; give one of them other parameters, or drop it")
        built[called] = strategy
    return built


def resolve(target: str) -> Any:
    """Return the class or function called `target`: "alenv.x.y.Name", or "module:Name" for the user's own code."""
    own = ":" in target
    module, _, attribute = target.replace(":", ".").rpartition(".") if not own else target.partition(":")
    if not own and not target.startswith(ALLOWED):
        raise ValueError(
            f"_target_ '{target}' is outside alenv; name your own code as 'module:Class', which says that you trust it"
        )
    if own and "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # the user's modules lie where the user stands
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ValueError(f"no module '{module}' (from '{target}'); is it in the working directory or installed?") from error
    if not hasattr(found, attribute):
        raise ValueError(f"module '{module}' has no '{attribute}'{nearest(attribute, dir(found))}")
    return getattr(found, attribute)


def _call(given: Mapping[str, Any]) -> Any:
    parameters = {key: value for key, value in given.items() if key not in ("_target_", "_partial_")}
    target = resolve(given["_target_"])
    accepted = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for key in parameters:
            _check(key, list(accepted), f"parameter of {given['_target_']}")
    parameters |= {key: build("strategy", parameters[key]) for key in _inner(target) if key in parameters}
    return functools.partial(target, **parameters) if given.get("_partial_") else target(**parameters)


def _inner(target: Any) -> list[str]:
    """Return the parameters of a class or function that are strategies, by their annotations."""
    from alenv.strategy import Strategy  # here: torch is not needed to know what there are names for

    kinds = {name: parameter.annotation for name, parameter in inspect.signature(target).parameters.items()}
    return [name for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, Strategy)]


def _candidates(set: str, without: Sequence[str] = ()) -> list[Any]:
    """Return what a candidate set lists, less the names in `without`."""
    _check(set, names("candidates"), "candidates")
    listed = config("candidates", set)["strategies"]
    if listed == EVERYTHING:
        listed = [name for name in names("strategy") if not _required(resolve(config("strategy", name)["_target_"]))]
    for name in without:
        _check(name, map(label, listed), f"member of candidates '{set}'")
    return [item for item in listed if label(item) not in without]


def _required(target: Any) -> list[str]:
    """Return the parameters that have no default."""
    return [name for name, parameter in inspect.signature(target).parameters.items() if parameter.default is parameter.empty]


def _called(item: Any, strategy: Any, parameters: bool = False) -> str:
    """Return what a strategy is called, with those it was given in parentheses: "prefilter(margin,coreset)".

    With `parameters`, everything else that was given stands there too: "subsample(badge,size=500)".
    """
    if not isinstance(item, Mapping):
        return label(item)
    inner = {key: part for key, part in getattr(strategy, "parts", {}).items() if key in item}
    told = [_called(item[key], part) for key, part in inner.items()]
    if parameters:
        told += [f"{key}={value}" for key, value in item.items() if key not in ("name", "_target_", *inner)]
    return label(item) + (f"({','.join(told)})" if told else "")


def label(item: Any) -> str:
    """Return what a thing given by name, mapping, "module:Class" or itself is called."""
    if isinstance(item, str):
        return item.rpartition(":")[2] if ":" in item else item
    if isinstance(item, Mapping) and ("name" in item or "_target_" in item):
        return str(item.get("name") or item["_target_"]).replace(":", ".").rpartition(".")[2]
    if isinstance(item, Mapping):
        raise ValueError(f"expected a strategy as a name or a mapping with 'name', got {dict(item)}")
    return type(item).__name__


def _check(name: str, known: Iterable[str], what: str) -> None:
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {what} '{name}'{nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest known one, or all of them."""
    known = sorted(k for k in known if not k.startswith("_"))
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(known)}"
