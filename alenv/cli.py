"""What the commands share: run directories named by their content, nearest names for typing errors, one sentence for errors."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from alenv import library
from alenv.library import nearest
from alenv.rundir import config_hash, drawn, flat

INFORMATION = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dicts and lists, Hydra's own part left out."""
    plain = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    made = OmegaConf.to_container(plain, resolve=True, throw_on_missing=True)
    assert isinstance(made, dict)
    return drawn({str(key): value for key, value in made.items()})


def run_name(*, _root_: DictConfig) -> str:
    """Return `<dataset>-<setting>-<selector>-<seed>-<hash8>` of the configuration being composed."""
    config, choices = resolved(_root_), _root_.hydra.runtime.choices
    return "-".join(
        str(part) for part in (choices.dataset, choices.setting, choices.selector, config["seed"], config_hash(config))
    )


def call(job: Callable[[], Any], config_name: str) -> None:
    """Run a `hydra.main` function; a typing error is answered by the nearest name instead of Hydra's own message."""
    OmegaConf.register_new_resolver("alenv_run", run_name, replace=True)
    said = io.StringIO()
    started = any(word.split("=")[0] in INFORMATION for word in sys.argv[1:])
    try:
        with contextlib.nullcontext() if started else contextlib.redirect_stderr(said):
            job()
    except SystemExit as stop:
        text = said.getvalue()
        hint = (nearest_option(text, config_name) or unusable_directory(text)) if stop.code else None
        sys.stderr.write(f"alenv: {hint}\n" if hint else text)
        raise
    except KeyboardInterrupt:
        sys.stderr.write("alenv: interrupted; the same command continues\n")
        sys.exit(130)  # 128 + SIGINT
    sys.stderr.write(said.getvalue())


@contextlib.contextmanager
def speaking(stream: Any) -> Iterator[None]:
    """Let standard error through again: the configuration is composed, what follows is for the user."""
    with contextlib.redirect_stderr(stream):
        yield


@contextlib.contextmanager
def told(directory: Path) -> Iterator[None]:
    """Answer what a user can mend by one sentence and the exit status 1; a run directory that is still empty is removed."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        with contextlib.suppress(OSError):
            directory.rmdir()
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"alenv: {error}", markup=False)
        if HydraConfig.get().mode is RunMode.MULTIRUN:  # the other runs go on; Hydra repeats the first error at the end
            raise CompactHydraException(f"alenv: {error}") from error
        sys.exit(1)


def nearest_option(message: str, config_name: str) -> str | None:
    """Return a sentence with the nearest option or choice if Hydra's `message` is about an unknown one."""
    if "Could not override" in message or "not in struct" in message or "Key '" in message:
        known = _keys(config_name)
        for word in sys.argv[1:]:
            key = word.split("=")[0].lstrip("+~")
            if "=" in word and key.split("@")[0] not in known and not key.startswith("hydra"):
                return f"'{key}' is not an option{_owners(key, config_name) or nearest(key, known)}"
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key in groups(config_name) and value in ("", "null"):
            return f"'{word}' chooses nothing; leave it out for the default, or choose one of: {', '.join(library.names(key))}"
        for name in value.split(",") if key in groups(config_name) and "Could not find" in message else ():  # several: a multirun
            if name not in library.names(key):
                return f"unknown {key} '{name}'{nearest(name, library.names(key))}"
    return None


def unusable_directory(message: str) -> str | None:
    """Return a sentence if Hydra's `message` is that it could not make the run directory."""
    found = re.search(r"^\w*Error: \[Errno \d+\] (.*): '(.*)'$", message, re.MULTILINE)
    return f"the run directory cannot be made ({found[1]}: {found[2]}); choose another with hydra.run.dir=..." if found else None


def content(config_name: str) -> dict[str, Any]:
    """Return the file of a command's options."""
    return yaml.safe_load(resources.files("alenv.configs").joinpath(f"{config_name}.yaml").read_text(encoding="utf-8"))


def groups(config_name: str) -> dict[str, str | None]:
    """Return the groups that a command chooses from, with their defaults."""
    listed = [item for item in content(config_name)["defaults"] if isinstance(item, dict)]
    return {group: name for item in listed for group, name in item.items() if " " not in group}  # "override hydra/..."


def _keys(config_name: str) -> list[str]:
    """Return every dotted key a command takes, those of the chosen (or default) member of each group included."""
    own = {key: value for key, value in content(config_name).items() if key not in ("defaults", "hydra")}
    chosen = groups(config_name)
    chosen |= dict(word.split("=", 1) for word in sys.argv[1:] if word.split("=")[0] in chosen and "=" in word)
    keys = {*own, *flat(own), *chosen}
    for group in chosen.keys() - {*library.OPTIONS}:  # sets of options have no keys of their own
        names = [name for name in str(chosen.get(group)).split(",") if name in library.names(group)] or library.names(group)
        for name in names:
            keys |= {f"{group}.{key}" for key in flat(library.config(group, name)) if not key.startswith("_")}
    return sorted(keys)


def _owners(key: str, config_name: str) -> str:
    """Return which choices of a group have the option `key`, as the rest of a sentence; empty if none has."""
    group, _, option = key.partition(".")
    known = library.names(group) if group in groups(config_name) and option else []
    names = [name for name in known if option in flat(library.config(group, name))]
    owners = [f"{group}={name}" for name in names]
    return f" here; it belongs to {' and '.join(filter(None, [', '.join(owners[:-1]), owners[-1]]))}" if owners else ""
