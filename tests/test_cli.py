"""The command line, in process: what a user types, what is answered, what is left on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alenv import train
from alenv.trainer import Trainer

Command = Callable[..., Any]  # words -> what was said, see `issue`


@pytest.fixture
def command(issue: Command) -> Command:
    """`alenv-train`, standing in an empty folder."""
    return lambda *words: issue(train.main, *words)


@pytest.fixture
def quick(command: Command) -> Command:
    """A run of one round, in the folder `run`."""
    return lambda *words: command("selector=random_pick", "budget.rounds=1", "hydra.run.dir=run", "device=cpu", *words)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_begins_and_ends_with_its_absolute_directory(command: Command, tmp_path: Path) -> None:
    answer = command("selector=random_pick", "budget.rounds=1", "device=cpu")
    assert answer.code == 0, answer.err
    (directory,) = (tmp_path / "runs").iterdir()
    assert directory.name.startswith("digits-standard-random_pick-0-")
    said = answer.out.splitlines()
    assert said[0] == f"run directory: {directory}"
    assert said[-1] == f"results: {directory}"
    assert answer.err == ""


def test_a_run_leaves_what_the_design_promises_and_nothing_of_hydra(quick: Command, tmp_path: Path) -> None:
    quick()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    events = {name for name in left if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert left - events == {
        "config.yaml",
        "purchases.jsonl",
        "rounds.jsonl",
        "summary.json",
        "checkpoint",
        "model.safetensors",
    }
    assert [row["round"] for row in lines(tmp_path / "run" / "rounds.jsonl")] == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("selecto=fixed", "'selecto' is not an option; did you mean 'selector'?"),
        ("sede=1", "'sede' is not an option; did you mean 'seed'?"),
        ("budget.batc=3", "'budget.batc' is not an option; did you mean 'budget.batch'?"),
        ("bugdet.rounds=2", "'bugdet.rounds' is not an option; did you mean 'budget.rounds'?"),
        ("trainer.epoch=3", "'trainer.epoch' is not an option; did you mean 'trainer.epochs'?"),
        ("strategy=margin", "'strategy' is not an option; did you mean 'strategies'?"),
        ("selector=fixd", "unknown selector 'fixd'; did you mean 'fixed'?"),
        ("dataset=digit", "unknown dataset 'digit'; did you mean 'digits'?"),
        ("net=small-cnn", "unknown net 'small-cnn'; did you mean 'small_cnn'?"),
        ("oracle=nosy", "unknown oracle 'nosy'; did you mean 'noisy'?"),
        ("reward=gian", "unknown reward 'gian'; did you mean 'gain'?"),
    ],
)
def test_a_misspelt_option_or_choice_gets_one_line_with_the_nearest(
    command: Command, word: str, said: str, tmp_path: Path
) -> None:
    answer = command(word)
    assert (answer.code, answer.complaint, answer.out) == (1, f"alenv: {said}", "")
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_choice_like_no_other_is_answered_by_all_there_are(command: Command) -> None:
    assert command("setting=zzz").complaint.startswith("alenv: unknown setting 'zzz'; there are: ")


def test_a_choice_of_nothing_is_answered_by_what_there_is(command: Command) -> None:
    assert command("net=null").complaint.startswith(
        "alenv: 'net=null' chooses nothing; leave it out for the default, or choose one of: "
    )


def test_a_misspelt_choice_among_several_is_the_one_that_is_named(command: Command) -> None:
    answer = command("-m", "selector=fixed,randon_pick", "seed=0,1")
    assert (answer.code, answer.complaint) == (1, "alenv: unknown selector 'randon_pick'; did you mean 'random_pick'?")


def test_each_failing_run_of_several_is_told_at_once_and_the_others_go_on(command: Command, tmp_path: Path) -> None:
    answer = command("-m", "selector=random_pick", "device=cpu", "budget.rounds=1000,1,2000", "draws=5")
    assert answer.code == 1
    told = [line for line in answer.err.splitlines() if line.startswith("alenv: the budget buys")]
    assert ["20020" in told[0], "40020" in told[1]] == [True, True]
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 1
    assert len([path for path in (tmp_path / "runs").iterdir() if path.is_dir()]) == 1, "no empty folders"


def test_an_option_of_another_choice_says_whose_it_is(command: Command) -> None:
    said = command("selector=random_pick", "selector.strategy=margin").complaint
    assert said == "alenv: 'selector.strategy' is not an option here; it belongs to selector=fixed"
    said = command("net.dropout=0.1").complaint
    assert said.startswith("alenv: 'net.dropout' is not an option here; it belongs to net=mlp, net=resnet18")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["selector=fixed", "selector.strategy=margn"], "unknown strategy 'margn'; did you mean 'margin'?"),
        (["strategies=[entropy,margn]"], "unknown strategy 'margn'; did you mean 'margin'?"),
        (["strategies=[{name:margn}]"], "unknown strategy 'margn'; did you mean 'margin'?"),
        (["strategies=autoal"], "unknown candidates 'autoal'; did you mean 'autoal7'?"),
        (["strategies=[margin,margin]"], "strategy 'margin' is listed twice; give one of them other parameters, or drop it"),
        (["strategies=[]"], "expected at least one candidate strategy, got an empty list"),
        (["strategies=['nowhere:Mine']"], "no module 'nowhere' (from 'nowhere:Mine')"),
        (["selector._target_=os.system"], "_target_ 'os.system' is outside alenv"),
        (["device=gpu"], "expected device=auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["budget.rounds=1000"], "the budget buys 20020 labels (initial 20 + batch 20 x 1000 rounds) but the pool has 1350"),
        (["dataset=fashion_mnist"], "no Fashion-MNIST files in "),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_no_folder(
    command: Command, words: list[str], said: str, tmp_path: Path
) -> None:
    answer = command("hydra.run.dir=run", *words)
    assert answer.code == 1
    assert answer.complaint.startswith(f"alenv: {said}")
    assert not (tmp_path / "run").exists()


def test_a_budget_too_large_says_how_many_rounds_fit(quick: Command) -> None:
    said = quick("budget.rounds=67").complaint
    assert "at most 66 rounds fit" in said
    assert "lower budget.rounds or budget.batch" in said


def test_help_lists_groups_and_defaults_and_runs_nothing(command: Command, tmp_path: Path) -> None:
    answer = command("--help")
    assert answer.code == 0
    for line in (
        "dataset: ag_news, arrays, breast_cancer",
        "selector: albl, autoal, comb",
        "  batch: 20",
        "strategies: autoal7",
    ):
        assert line in answer.out
    assert answer.err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_can_be_looked_at_without_running(command: Command, tmp_path: Path) -> None:
    answer = command("--cfg", "job", "selector=fixed", "selector.strategy=bald")
    assert answer.code == 0
    assert "strategy: bald" in answer.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["run", "run/deeper"])
def test_a_run_directory_below_a_file_is_one_clear_sentence(command: Command, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    answer = command(f"hydra.run.dir={tmp_path}/file/{below}")
    assert answer.code == 1
    assert answer.complaint.startswith("alenv: the run directory cannot be made (Not a directory: ")
    assert answer.complaint.endswith("choose another with hydra.run.dir=...")
    assert (tmp_path / "file").read_text() == "mine"


def test_another_configuration_in_the_same_directory_is_refused_with_the_difference(quick: Command, tmp_path: Path) -> None:
    quick()
    before = content(tmp_path / "run")
    answer = quick("seed=1", "budget.batch=10")
    assert answer.code == 1
    assert f"{tmp_path / 'run'} holds a run with another configuration" in answer.complaint
    assert "(budget.batch: 20 -> 10; seed: 0 -> 1)" in answer.complaint
    assert "fresh=true" in answer.complaint
    assert content(tmp_path / "run") == before


def test_fresh_starts_over_where_another_configuration_was(quick: Command, tmp_path: Path) -> None:
    quick()
    first = lines(tmp_path / "run" / "purchases.jsonl")
    answer = quick("seed=1", "fresh=true")
    assert answer.code == 0, answer.err
    second = lines(tmp_path / "run" / "purchases.jsonl")
    assert len(second) == len(first) == 40
    assert {row["id"] for row in second} != {row["id"] for row in first}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seed"] == 1
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1


def test_fresh_starts_over_a_finished_run_of_the_same_configuration(
    quick: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick()
    trained = count_fits(monkeypatch)
    answer = quick("fresh=true")
    assert answer.code == 0, answer.err
    assert len(trained) == 2, "round 0 and round 1"
    assert quick().code == 0
    assert len(trained) == 2, "and now it is finished again"


def test_a_finished_run_issued_again_prints_its_summary_and_trains_nothing(
    quick: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quick()
    before = content(tmp_path / "run")
    trained = count_fits(monkeypatch)
    second = quick()
    assert second.code == 0, second.err
    assert trained == []
    assert content(tmp_path / "run") == before
    assert second.out.splitlines()[0] == first.out.splitlines()[0]
    assert second.out.splitlines()[-3:] == first.out.splitlines()[-3:]
    assert "area under its curve" in second.out


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with each training."""
    trained: list[int] = []
    fit = Trainer.fit

    def counted(self: Trainer, job: Any) -> Any:
        trained.append(job.round)
        return fit(self, job)

    monkeypatch.setattr(Trainer, "fit", counted)
    return trained


def test_the_same_command_continues_a_run_that_was_stopped(
    quick: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quick("hydra.run.dir=whole", "budget.rounds=2").code == 0

    fit = Trainer.fit

    def full(self: Trainer, job: Any) -> Any:
        if job.round == 2:
            raise OSError(28, "No space left on device")
        return fit(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", full)
        answer = quick("budget.rounds=2")
        assert answer.code == 1
        assert "No space left on device" in answer.complaint
    answer = quick("budget.rounds=2")
    assert answer.code == 0, answer.err
    assert "continuing after round 1" in answer.out
    assert lines(tmp_path / "run" / "purchases.jsonl") == lines(tmp_path / "whole" / "purchases.jsonl")


def test_an_interrupted_run_says_how_to_go_on_and_does(quick: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Trainer.fit

    def interrupted(self: Trainer, job: Any) -> Any:
        if job.round == 1:
            raise KeyboardInterrupt
        return fit(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", interrupted)
        answer = quick()
    assert (answer.code, answer.complaint) == (130, "alenv: interrupted; the same command continues")
    answer = quick()
    assert answer.code == 0, answer.err


def test_a_strategy_of_the_users_own_is_found_in_the_working_directory(quick: Command, tmp_path: Path) -> None:
    (tmp_path / "my_strategy_of_the_cli.py").write_text(
        "from alenv.strategies.margin import Margin\nclass Mine(Margin):\n    pass\n"
    )
    answer = quick("strategies=['my_strategy_of_the_cli:Mine']")
    assert answer.code == 0, answer.err
    assert "Mine" in answer.out


def test_a_crash_in_the_users_own_code_shows_where_it_happened(quick: Command, tmp_path: Path) -> None:
    (tmp_path / "my_broken_strategy.py").write_text(
        "from alenv.strategies.margin import Margin\n"
        "class Broken(Margin):\n    def score(self, round):\n        raise RuntimeError('Key of the broken one')\n"
    )
    answer = quick("strategies=['my_broken_strategy:Broken']")
    assert answer.code == 1
    assert "RuntimeError: Key of the broken one" in answer.err
    assert "my_broken_strategy.py" in answer.err


def test_a_person_is_asked_with_exit_code_0_and_answered_by_the_same_command(quick: Command, tmp_path: Path) -> None:
    asked = quick("oracle=file")
    assert asked.code == 0, asked.err
    assert asked.err == ""
    question = tmp_path / "run" / "query.csv"
    assert str(question) in asked.out
    assert "Traceback" not in asked.out
    assert len(question.read_text().splitlines()) == 1 + 20


@pytest.mark.parametrize("name", ["level", "normalized_gain"])
def test_the_reward_is_an_option_of_the_command_line(quick: Command, name: str) -> None:
    answer = quick(f"reward={name}")
    assert answer.code == 0, answer.err
