"""Names -> things: the YAML files of `configs/`, resolved from an allow-list plus what the user names."""

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

GROUPS = ("strategy", "candidates", "selector", "dataset", "setting", "net", "trainer", "reward", "oracle", "encoder")
ALLOWED = "alenv."
EVERYTHING = "all"


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
        spec: the name of a candidate set ("autoal7", "all"); a list whose items are names, mappings with `name` and parameters,
            or "module:Class"; or a mapping from names of your own to such items or to strategies.
        required: names appended if they are missing.
    """
    if isinstance(spec, Mapping) and spec and not {"name", "_target_"} & spec.keys():
        named = {**spec, **{name: name for name in required if name not in spec}}
        return {label: build("strategy", item) for label, item in named.items()}
    listed: list[Any]
    if isinstance(spec, Mapping):
        listed = [spec] if spec else []
    elif isinstance(spec, str):
        if spec != EVERYTHING and ":" not in spec:
            _check(spec, [*names("candidates"), EVERYTHING], "candidates")
        listed = names("strategy") if spec == EVERYTHING else [spec] if ":" in spec else config("candidates", spec)["strategies"]
    else:
        listed = list(spec)
    items = [*listed, *(name for name in required if name not in [label(item) for item in listed])]
    if not items:
        raise ValueError("expected at least one candidate strategy, got an empty list; name some, or use strategies=autoal7")
    built: dict[str, Any] = {}
    for item in items:
        called = label(item)
        if called in built and isinstance(item, Mapping):
            called += "(" + ",".join(f"{k}={v}" for k, v in item.items() if k != "name") + ")"
        if called in built:
            raise ValueError(f"strategy '{called}' is listed twice; give one of them other parameters, or drop it")
        built[called] = build("strategy", item)
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
    return functools.partial(target, **parameters) if given.get("_partial_") else target(**parameters)


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
