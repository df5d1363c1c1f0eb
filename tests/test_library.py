"""Names -> things: what can be named, how it is built, and what a wrong name or a foreign target is answered."""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alenv import library
from alenv.nets.mlp import mlp
from alenv.oracle import NoisyOracle
from alenv.strategies.margin import Margin
from alenv.strategies.variation_ratio import VariationRatio
from alenv.strategy import Strategy

AUTOAL7 = ["least_confidence", "margin", "entropy", "kmeans", "bald", "variation_ratio", "mean_std"]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A module of the user's in the working directory; the interpreter's path is put back afterwards."""
    (tmp_path / "my_own_methods.py").write_text(
        "from alenv.strategies.margin import Margin\n"
        "class Mine(Margin):\n    def __init__(self, strength: float = 1.0):\n        self.strength = strength\n"
        "def net(input_shape, num_outputs, mean=0.0, std=1.0): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "my_own_methods", raising=False)
    yield "my_own_methods"
    sys.modules.pop("my_own_methods", None)


def test_names_are_sorted_and_hold_what_the_design_promises() -> None:
    assert set(AUTOAL7) | {"uniform"} <= set(library.names("strategy"))
    assert {"albl", "autoal", "fixed", "random_pick", "uniform_mixture"} <= set(library.names("selector"))
    assert {"digits", "fashion_mnist"} <= set(library.names("dataset"))
    assert all(library.names(group) == sorted(set(library.names(group))) for group in library.GROUPS)


def test_a_group_without_files_has_no_names() -> None:
    assert library.names("encoder") == [] or Path(library.__file__).parent.parent.joinpath("configs", "encoder").is_dir()


def test_a_name_builds_the_thing_with_the_numbers_of_its_file() -> None:
    assert isinstance(library.build("strategy", "margin"), Margin)
    assert library.build("oracle", "noisy").rate == library.config("oracle", "noisy")["rate"]


def test_overrides_replace_the_numbers_of_the_file() -> None:
    assert library.build("oracle", "noisy", rate=0.4).rate == 0.4
    assert library.build("strategy", "variation_ratio", mode="single").mode == "single"


def test_a_mapping_carries_parameters_and_overrides_win() -> None:
    assert library.build("strategy", {"name": "variation_ratio", "mode": "single"}).mode == "single"
    assert library.build("oracle", {"name": "noisy", "rate": 0.4}, rate=0.3).rate == 0.3


def test_a_mapping_with_a_target_needs_no_name() -> None:
    built = library.build("oracle", {"_target_": "alenv.oracle.NoisyOracle", "rate": 0.2})
    assert isinstance(built, NoisyOracle)
    assert built.rate == 0.2


def test_building_leaves_the_mapping_as_it_was() -> None:
    given = {"name": "variation_ratio", "mode": "single"}
    library.build("strategy", given)
    assert given == {"name": "variation_ratio", "mode": "single"}


def test_functions_that_wait_for_the_data_come_as_partials() -> None:
    built = library.build("net", "mlp", width=32)
    assert isinstance(built, functools.partial)
    assert built.func is mlp
    assert built.keywords["width"] == 32


def test_a_live_object_is_returned_as_it_is() -> None:
    strategy = Margin()
    assert library.build("strategy", strategy) is strategy
    assert library.build("net", mlp) is mlp


def test_the_users_own_code_is_named_by_module_and_class(own_module: str) -> None:
    built = library.build("strategy", f"{own_module}:Mine", strength=2.0)
    assert isinstance(built, Strategy)
    assert built.strength == 2.0  # type: ignore[attr-defined]
    assert library.build("strategy", {"name": f"{own_module}:Mine", "strength": 3.0}).strength == 3.0


@pytest.mark.parametrize(
    ("group", "name", "nearest"),
    [
        ("strategy", "margn", "margin"),
        ("strategy", "kmean", "kmeans"),
        ("selector", "autola", "autoal"),
        ("dataset", "digit", "digits"),
        ("net", "small-cnn", "small_cnn"),
        ("reward", "gian", "gain"),
        ("candidates", "autoal", "autoal7"),
        ("candidates", "al", "all"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_nearest(group: str, name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"^unknown {group} '{name}'; did you mean '{nearest}'\?$"):
        library.build(group, name)


def test_a_name_like_no_other_is_answered_by_all_there_are() -> None:
    with pytest.raises(ValueError, match="unknown oracle 'zzz'; there are: file, noisy, simulated"):
        library.build("oracle", "zzz")


@pytest.mark.parametrize("call", [lambda: library.names("strategie"), lambda: library.build("strategie", "margin")])
def test_a_misspelt_group_is_answered_by_the_nearest(call: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown group 'strategie'; did you mean 'strategy'\?"):
        call()


def test_a_misspelt_parameter_is_answered_by_the_nearest_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match=r"unknown parameter of alenv\.oracle\.NoisyOracle 'rat'; did you mean 'rate'\?"):
        library.build("oracle", "noisy", rat=0.2)
    with pytest.raises(ValueError, match=r"unknown parameter of alenv\.nets\.mlp\.mlp 'widht'; did you mean 'width'\?"):
        library.build("net", {"name": "mlp", "widht": 3})


def test_a_mapping_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"oracle: expected a mapping with 'name' and parameters, got \{'rate': 0.2\}"):
        library.build("oracle", {"rate": 0.2})


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "alenvoy.Strategy", "subprocess.run", "eval"])
def test_a_dotted_target_outside_the_library_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=rf"_target_ '{target}' is outside alenv; name your own code as 'module:Class'"):
        library.build("strategy", {"_target_": target, "command": "true"})


def test_a_refused_target_is_not_even_imported(own_module: str) -> None:
    with pytest.raises(ValueError, match="is outside alenv"):
        library.build("strategy", {"_target_": f"{own_module}.Mine"})
    assert own_module not in sys.modules


def test_a_missing_module_and_a_missing_class_are_told_apart(own_module: str) -> None:
    with pytest.raises(ValueError, match=r"no module 'no_such_module' \(from 'no_such_module:Mine'\)"):
        library.build("strategy", "no_such_module:Mine")
    with pytest.raises(ValueError, match=rf"module '{own_module}' has no 'Mien'; did you mean 'Mine'\?"):
        library.build("strategy", f"{own_module}:Mien")


def test_an_import_that_fails_inside_the_users_module_is_not_blamed_on_its_name(own_module: str, tmp_path: Path) -> None:
    (tmp_path / f"{own_module}.py").write_text("import a_package_that_is_absent\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_absent"):
        library.build("strategy", f"{own_module}:Mine")


def test_a_candidate_set_builds_its_strategies_in_order() -> None:
    assert list(library.strategies("autoal7")) == AUTOAL7
    assert list(library.build("candidates", "autoal7")) == AUTOAL7


def test_all_means_every_strategy_that_can_be_made_without_parameters() -> None:
    everything = list(library.strategies("all"))
    assert set(AUTOAL7) < set(everything)
    others = [name for name in library.names("strategy") if name not in everything]
    assert {"subsample", "prefilter"} <= set(others), "their inner strategies are in the set already"
    for name in others:
        with pytest.raises(TypeError, match="required positional argument"):
            library.resolve(library.config("strategy", name)["_target_"])()
    assert everything == sorted(everything)


def test_a_set_can_be_taken_without_some_of_its_members() -> None:
    spec = {"set": "autoal7", "without": ["bald", "mean_std", "variation_ratio"]}
    assert list(library.strategies(spec)) == ["least_confidence", "margin", "entropy", "kmeans"]
    assert list(library.strategies(spec, required=["bald"])) == ["least_confidence", "margin", "entropy", "kmeans", "bald"]
    assert list(library.strategies({"set": "autoal7"})) == AUTOAL7


def test_a_set_without_what_it_does_not_have_is_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown member of candidates 'autoal7' 'margn'; did you mean 'margin'\?"):
        library.strategies({"set": "autoal7", "without": ["margn"]})
    with pytest.raises(ValueError, match="unknown candidates 'autoal8'; did you mean 'autoal7'"):
        library.strategies({"set": "autoal8", "without": []})
    with pytest.raises(ValueError, match=r"unknown key of strategies=.* 'withuot'; did you mean 'without'\?"):
        library.strategies({"set": "autoal7", "withuot": ["margin"]})


def test_a_wrapper_takes_strategies_by_name_mapping_class_or_themselves(own_module: str) -> None:
    named = library.build("strategy", {"name": "subsample", "inner": "margin", "size": 50})
    assert isinstance(named.inner, Margin)
    assert named.size == 50
    nested = {"name": "prefilter", "by": f"{own_module}:Mine", "inner": {"name": "subsample", "inner": "entropy", "size": 40}}
    built = library.build("strategy", nested)
    assert [type(part).__name__ for part in built.parts.values()] == ["Mine", "Subsample"]
    assert built.inner.size == 40
    ready = Margin()
    assert library.build("strategy", "subsample", inner=ready).inner is ready


def test_an_unknown_strategy_inside_a_wrapper_is_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^unknown strategy 'margn'; did you mean 'margin'\?$"):
        library.build("strategy", {"name": "subsample", "inner": "margn"})


def test_wrapped_strategies_are_called_by_what_is_inside(own_module: str) -> None:
    ready = {"name": "subsample", "inner": "margin"}
    built = library.strategies([
        "subsample", ready, {**ready, "size": 500}, {"name": "prefilter", "by": "entropy", "inner": ready},
        {"name": "prefilter", "inner": f"{own_module}:Mine"}, {"name": "subsample", "inner": Margin()},
        {"name": "subsample", "size": 9},
    ])  # fmt: skip
    assert list(built) == [
        "subsample", "subsample(margin)", "subsample(margin,size=500)", "prefilter(entropy,subsample(margin))",
        "prefilter(Mine)", "subsample(Margin)", "subsample(size=9)",
    ]  # fmt: skip


def test_a_list_takes_names_mappings_and_the_users_own(own_module: str) -> None:
    built = library.strategies(["margin", {"name": "variation_ratio", "mode": "single"}, f"{own_module}:Mine", Margin()])
    assert list(built) == ["margin", "variation_ratio", "Mine", "Margin"]
    assert built["variation_ratio"].mode == "single"
    assert all(isinstance(strategy, Strategy) for strategy in built.values())


def test_one_class_of_the_users_makes_a_set_of_one(own_module: str) -> None:
    assert list(library.strategies(f"{own_module}:Mine")) == ["Mine"]


def test_a_strategy_listed_twice_with_other_parameters_gets_them_in_its_name() -> None:
    built = library.strategies(["variation_ratio", {"name": "variation_ratio", "mode": "single"}])
    assert list(built) == ["variation_ratio", "variation_ratio(mode=single)"]
    assert [strategy.mode for strategy in built.values()] == ["vote", "single"]


def test_a_strategy_listed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy 'margin' is listed twice"):
        library.strategies(["margin", "entropy", "margin"])
    with pytest.raises(ValueError, match=r"strategy 'variation_ratio\(mode=single\)' is listed twice"):
        library.strategies(["variation_ratio", *[{"name": "variation_ratio", "mode": "single"}] * 2])


def test_required_strategies_are_appended_once() -> None:
    assert list(library.strategies(["margin"], required=["uniform", "margin"])) == ["margin", "uniform"]
    assert list(library.strategies([], required=["uniform"])) == ["uniform"]
    parametrised = [{"name": "variation_ratio", "mode": "single"}]
    assert list(library.strategies(parametrised, required=["variation_ratio"])) == ["variation_ratio"]


@pytest.mark.parametrize("nothing", [[], (), {}])
def test_no_strategy_at_all_is_refused(nothing: Any) -> None:
    with pytest.raises(ValueError, match="expected at least one candidate strategy, got an empty list"):
        library.strategies(nothing)


def test_a_mapping_gives_strategies_names_of_ones_own() -> None:
    ready = Margin()
    built = library.strategies({"ready": ready, "named": "entropy", "made": {"name": "variation_ratio", "mode": "single"}})
    assert list(built) == ["ready", "named", "made"]
    assert built["ready"] is ready
    assert isinstance(built["made"], VariationRatio)


def test_required_strategies_are_appended_to_a_mapping_too() -> None:
    assert list(library.strategies({"mine": Margin()}, required=["uniform"])) == ["mine", "uniform"]


def test_a_single_mapping_with_a_name_is_one_strategy() -> None:
    assert list(library.strategies({"name": "variation_ratio", "mode": "single"})) == ["variation_ratio"]


def test_an_item_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a strategy as a name or a mapping with 'name', got \{'mode': 'single'\}"):
        library.strategies(["margin", {"mode": "single"}])


def test_two_builds_are_two_objects() -> None:
    assert library.strategies("autoal7")["margin"] is not library.strategies("autoal7")["margin"]
