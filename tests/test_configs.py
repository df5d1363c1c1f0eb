"""The YAML files: every one builds, every choice composes, and none disagrees with the constructor it calls."""

import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from alenv import cli, library, problem
from alenv.campaign import Plan
from alenv.env import ActiveLearningEnv
from alenv.runner import Runner

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(str(file.relative_to(ROOT / "configs").with_suffix("")) for file in ROOT.glob("configs/*/*.yaml"))
TRAIN = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))
HYDRA_GROUPS = {
    group: name for item in TRAIN["defaults"] if isinstance(item, dict) for group, name in item.items() if " " not in group
}
PARTIALS = ("net", "setting")
ON_DISK = [  # their files must be there, or their module
    f"dataset/{name}" for name in library.names("dataset") if {"root", "path", "train"} & library.config("dataset", name).keys()
]
AGENTLESS = ("selector/dqn", "selector/sac")  # they need the path of an agent


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hydra() -> Iterator[None]:
    OmegaConf.register_new_resolver("alenv_run", cli.run_name, replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_module("alenv.configs", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def content(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / f"{file}.yaml").read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def disagreements(given: dict[str, Any], target: Any) -> list[str]:
    """Return the parameters whose value in a file is not the default of `target`."""
    accepted = inspect.signature(target).parameters
    numbers = {key: value for key, value in given.items() if not key.startswith("_")}
    return [
        f"{key}: {value} here, {accepted[key].default} there"
        for key, value in numbers.items()
        if accepted[key].default is not inspect.Parameter.empty and plain(accepted[key].default) != value
    ]


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file not in (*AGENTLESS, *ON_DISK) and not file.startswith(("experiment/", "preset/"))],
)
def test_every_file_builds(file: str) -> None:
    group, name = file.split("/")
    built = library.build(group, name)
    if group in PARTIALS:
        assert isinstance(built, functools.partial), "nets and settings wait for the data"
    elif group == "candidates":
        assert content(file)["strategies"] in (list(built), library.EVERYTHING)
    else:
        assert not inspect.isclass(built)
        assert built is not None


@pytest.mark.parametrize("file", [file for file in ON_DISK if "root" in content(file)])
def test_data_that_are_not_there_say_where_to_get_them(file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.root") as caught:
        library.build("dataset", file.removeprefix("dataset/"), root=str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


def variants() -> set[str]:
    """Files that share their `_target_` with another one exist to hold other numbers."""
    targets = [content(file).get("_target_") for file in FILES]
    return {file for file in FILES if targets.count(content(file).get("_target_")) > 1}


@pytest.mark.parametrize("file", [file for file in FILES if "_target_" in content(file) and file not in variants()])
def test_no_file_disagrees_with_its_constructor(file: str) -> None:
    assert disagreements(content(file), library.resolve(content(file)["_target_"])) == []


def test_a_file_that_disagrees_is_noticed() -> None:
    def net(input_shape: Any, widths: Any = (32, 64), dropout: float = 0.3) -> None: ...

    assert disagreements({"_target_": "x", "widths": [32, 64], "dropout": 0.3}, net) == []
    assert disagreements({"_target_": "x", "widths": [32, 65], "dropout": 0.2}, net) == [
        "widths: [32, 65] here, (32, 64) there", "dropout: 0.2 here, 0.3 there",
    ]  # fmt: skip


def test_the_numbers_of_train_yaml_are_those_of_the_plan_the_problem_and_the_environment() -> None:
    assert disagreements(TRAIN["budget"], Plan) == []
    assert disagreements({"draws": TRAIN["draws"], "stop_accuracy": TRAIN["stop"]["accuracy"]}, Plan) == []
    shared = {key: TRAIN[key] for key in ("initial", "validation", "joint", "strategies")}
    assert disagreements(shared, problem.assemble) == []
    assert disagreements({**TRAIN["budget"], "draws": TRAIN["draws"], "strategies": TRAIN["strategies"]}, ActiveLearningEnv) == []
    groups = {group: name for group, name in HYDRA_GROUPS.items() if group not in ("selector", "reward", "experiment")}
    assert disagreements(groups, problem.assemble) == []


@pytest.mark.parametrize("group", ["strategies", "selectors"])
def test_every_strategy_and_selector_has_its_file_and_the_other_way_round(group: str) -> None:
    kind = {"strategies": "strategy", "selectors": "selector"}[group]
    modules = {file.stem for file in (ROOT / group).glob("*.py")}
    assert modules == {
        name for name in library.names(kind) if content(f"{kind}/{name}")["_target_"].startswith(f"alenv.{group}.{name}.")
    }


def test_every_folder_is_a_group_of_the_library() -> None:
    assert {file.split("/")[0] for file in FILES} <= set(library.GROUPS)
    assert {f"{group}/{name}" for group in library.GROUPS for name in library.names(group)} == set(FILES)


def test_the_typing_help_knows_the_groups_of_train_yaml() -> None:
    assert set(cli.groups("train")) == set(HYDRA_GROUPS)
    assert all(name is None or name in library.names(group) for group, name in HYDRA_GROUPS.items())


@pytest.mark.parametrize("name", library.names("experiment"))
def test_an_experiment_changes_what_it_names_and_nothing_else(hydra: None, name: str) -> None:
    given = content(f"experiment/{name}")
    composed = cli.resolved(compose("train", overrides=[f"experiment={name}"]))
    chosen = [
        f"{key.removeprefix('override /')}={value}"
        for item in given.pop("defaults", [])
        for key, value in item.items()
        if key.startswith("override /")
    ]
    plain = cli.resolved(compose("train", overrides=chosen))
    assert composed == plain | {key: plain[key] | value if isinstance(value, dict) else value for key, value in given.items()}
    if any(choice.startswith("dataset=") for choice in chosen):  # the user brings the data
        with pytest.raises(ValueError, match=r"set dataset\.root"):
            Runner.of({**composed, "device": "cpu"})
    else:
        Runner.of({**composed, "device": "cpu"})
    with pytest.raises(ValueError, match=f"run python -m alenv.train experiment={name}"):
        library.build("experiment", name)


PARTS = [(group, name) for group in HYDRA_GROUPS if group != "experiment" for name in library.names(group)]


@pytest.mark.parametrize(("group", "name"), PARTS)
def test_hydra_composes_every_choice(hydra: None, group: str, name: str) -> None:
    composed = OmegaConf.to_container(compose("train", overrides=[f"{group}={name}"]), resolve=True)
    assert isinstance(composed, dict)
    assert composed[group] == content(f"{group}/{name}")
    assert composed["budget"] == TRAIN["budget"]


def test_what_hydra_composes_is_what_a_runner_takes(hydra: None) -> None:
    runner = Runner.of(cli.resolved(compose("train", overrides=["device=cpu"])))
    assert list(runner.problem.strategies) == content("candidates/autoal7")["strategies"]
    assert runner.selector.__class__.__name__ == "AutoAL"
    assert runner.problem.plan.batch == TRAIN["budget"]["batch"]


def test_the_run_directory_is_named_by_choices_seed_and_content(hydra: None) -> None:
    def folder(*words: str) -> str:
        return compose("train", overrides=list(words), return_hydra_config=True).hydra.run.dir

    plain, other = folder("selector=fixed", "seed=3"), folder("selector=fixed", "seed=3", "budget.batch=7")
    assert plain.startswith("runs/digits-standard-fixed-3-")
    assert len(plain.rpartition("-")[2]) == 8
    assert other.rpartition("-")[0] == plain.rpartition("-")[0]
    assert other != plain
    assert folder("selector=fixed", "seed=3", "fresh=true") == plain, "starting over happens in the same place"
