"""TensorBoard: which tags a run writes, at which steps, and that its pictures, configuration and hyper-parameters can be read."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from alenv import library
from alenv.compare import compare
from alenv.problem import assemble
from alenv.runner import Runner
from alenv.task import Examples, Source, number_ids
from alenv.tensorboard import FINAL, TensorBoard

SELECTORS: dict[str, Any] = {"albl": "albl", "autoal": {"name": "autoal", "fit_epochs": 5, "steps": 12}}
BUDGET = {"initial": 20, "batch": 12, "rounds": 3}
STEPS = [20, 32, 44, 56]
CANDIDATES = ["margin", "kmeans", "uniform"]
METRICS = {"accuracy", "macro_f1", "balanced_accuracy", "nll", "ece"}


def a_config(name: str, **changes: Any) -> dict[str, Any]:
    plain = {"selector": SELECTORS[name], "strategies": CANDIDATES, "budget": BUDGET, "seed": 3, "device": "cpu", "reward": None}
    return plain | {"stop": {"accuracy": None}, "joint": False} | changes


def read(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def hyper_parameters(found: EventAccumulator) -> tuple[dict[str, Any], set[str]]:
    """The values in the session's start, and the metrics that the experiment declares."""
    content = found.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content["_hparams_/session_start_info"])
    experiment = metadata.parse_experiment_plugin_data(content["_hparams_/experiment"])
    values = {key: getattr(value, str(value.WhichOneof("kind"))) for key, value in start.hparams.items()}
    return values, {info.name.tag for info in experiment.metric_infos}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    for name in SELECTORS:
        Runner.of(a_config(name), root / name, [TensorBoard()]).run()
    return {name: root / name for name in SELECTORS}


@pytest.fixture(params=SELECTORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]


def test_every_curve_counts_labels_not_rounds(runs: dict[str, Path], name: str) -> None:
    found = read(runs[name])
    for tag in found.Tags()["scalars"]:
        steps = [event.step for event in found.Scalars(tag)]
        assert set(steps) <= set(STEPS), tag
        assert steps == sorted(set(steps)), tag
    for tag in (*(f"task/{metric}" for metric in METRICS), "task/validation", "seconds/train"):
        assert [event.step for event in found.Scalars(tag)] == STEPS, tag
    for tag in ("reward", *(f"selector/weight/{candidate}" for candidate in CANDIDATES)):
        assert [event.step for event in found.Scalars(tag)] == STEPS[1:], tag


def test_curves_hold_the_values_of_the_rounds(runs: dict[str, Path], name: str) -> None:
    found, records = read(runs[name]), rows(runs[name])

    def values(tag: str) -> list[float]:
        return [event.value for event in found.Scalars(tag)]

    for metric in METRICS:
        assert values(f"task/{metric}") == pytest.approx([row["metrics"][metric] for row in records])
    assert values("task/validation") == pytest.approx([row["validation"] for row in records])
    assert values("reward") == pytest.approx([row["reward"] for row in records[1:]])
    for s, candidate in enumerate(CANDIDATES):
        assert values(f"selector/weight/{candidate}") == pytest.approx([row["action"][s] for row in records[1:]])
    for logged, last in records[-1]["selector"].items():
        assert values(f"selector/{logged}")[-1] == pytest.approx(last)
    for phase, last in records[-1]["seconds"].items():
        tag = f"select/seconds/{phase.removeprefix('select/')}" if "/" in phase else f"seconds/{phase}"
        assert values(tag)[-1] == pytest.approx(last, abs=1e-6)


def test_there_are_no_other_curves(runs: dict[str, Path]) -> None:
    prefixes = ("task/", "selector/", "select/seconds/", "seconds/", "final/")
    for directory in runs.values():
        tags = read(directory).Tags()["scalars"]
        assert [tag for tag in tags if not tag.startswith(prefixes) and tag != "reward"] == []


def test_queried_images_are_sheets_of_the_batch(runs: dict[str, Path], name: str) -> None:
    sheets = read(runs[name]).Images("queried")
    assert [sheet.step for sheet in sheets] == STEPS
    for sheet in sheets:
        picture = Image.open(io.BytesIO(sheet.encoded_image_string))
        assert picture.size == (sheet.width, sheet.height) == (680, 164)  # ten in a row of 68, two rows of 64 + 14 + 4
        assert np.asarray(picture.convert("L")).std() > 20


def test_a_sheet_shows_the_digits_that_were_bought(runs: dict[str, Path]) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(read(runs["albl"]).Images("queried")[1].encoded_image_string)).convert("L"))
    train = library.build("dataset", "digits").train
    first = train.inputs[train.ids.index(rows(runs["albl"])[1]["queried"][0]), 0].double().numpy()
    shown = sheet[2:66, 2:66].reshape(8, 8, 8, 8)[:, 3, :, 3].astype(float)
    assert np.corrcoef(shown.ravel(), first.ravel())[0, 1] > 0.99


def test_the_configuration_is_a_text(runs: dict[str, Path], name: str) -> None:
    texts = read(runs[name]).Tensors("config/text_summary")
    assert [event.step for event in texts] == [0]
    text = texts[0].tensor_proto.string_val[0].decode()
    assert "    seed: 3\n" in text
    assert "    - kmeans\n" in text


def test_hyper_parameters_and_final_metrics_share_the_run_s_one_event_file(runs: dict[str, Path], name: str) -> None:
    directory = runs[name]
    assert len(list(directory.rglob("events.out.tfevents.*"))) == 1
    assert [p.name for p in directory.iterdir() if p.is_dir()] == ["checkpoint"]  # no sub-run
    found, summary = read(directory), json.loads((directory / "summary.json").read_text())
    values, metrics = hyper_parameters(found)
    assert metrics == set(FINAL)
    assert (values["seed"], values["budget.batch"], values["joint"]) == (3, 12, False)
    assert values["strategies"] == str(CANDIDATES)
    assert "reward" not in values
    assert "stop.accuracy" not in values
    for tag, key in zip(FINAL, ("aubc", "final"), strict=True):
        assert [(e.step, e.value) for e in found.Scalars(tag)] == [(56, pytest.approx(summary[key]))]


def test_runs_of_different_selectors_have_the_same_final_metrics(runs: dict[str, Path]) -> None:
    tags = [{tag for tag in read(directory).Tags()["scalars"] if tag.startswith("final/")} for directory in runs.values()]
    assert tags == [set(FINAL)] * len(runs)
    assert len({frozenset(hyper_parameters(read(directory))[1]) for directory in runs.values()}) == 1


def planted(test: bool, image: bool) -> Source:
    """Three classes, as vectors or as coloured pictures."""
    noise = torch.Generator().manual_seed(0)
    targets = torch.arange(120) % 3
    inputs = torch.randn(120, 4, generator=noise) + 4 * torch.nn.functional.one_hot(targets, 4)
    inputs = inputs[:, :3, None, None].expand(-1, -1, 5, 5).clone() if image else inputs
    examples = Examples(inputs, targets, number_ids(120))
    return Source("planted", examples, examples.take(torch.arange(30)) if test else None, ("a", "b", "c"))


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("test", [False, True])
def test_what_a_data_set_lacks_is_left_out(test: bool, image: bool, tmp_path: Path) -> None:
    plan = Runner.of(a_config("albl")).problem.plan
    problem = assemble(dataset=planted(test, image), strategies=["margin"], device="cpu", validation=0, plan=plan)
    selector = library.build("selector", "random_pick")
    Runner(problem, selector, directory=tmp_path, config={"data": "planted"}, callbacks=[TensorBoard()]).run()
    found = read(tmp_path)
    tags = set(found.Tags()["scalars"])
    assert "task/validation" not in tags
    assert {tag for tag in tags if tag.startswith("task/")} == ({f"task/{metric}" for metric in METRICS} if test else set())
    assert {tag for tag in tags if tag.startswith("final/")} == (set(FINAL) if test else set())
    assert found.Tags()["images"] == (["queried"] if image else [])
    assert hyper_parameters(found)[0] == {"data": "planted"}


def test_an_empty_run_closes_quietly() -> None:
    TensorBoard().close()


# A comparison


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("comparison")
    config: dict[str, Any] = {
        "datasets": ["digits", "iris"], "selectors": ["random_pick"], "fixed": ["uniform", "margin"], "seeds": 3,
        "budget": {"initial": 12, "batch": 4, "rounds": 2}, "executor": "inline", "device": "cpu",
    }  # fmt: skip
    (root / "tensorboard").mkdir()
    (root / "tensorboard" / "events.out.tfevents.old").touch()
    compare(config, root)
    return root


def test_a_comparison_has_a_run_per_policy_with_mean_and_interval(compared: Path) -> None:
    folder = compared / "tensorboard"
    assert sorted(p.name for p in folder.iterdir()) == ["margin", "pool", "random_pick", "uniform"], "what was there is gone"
    rounds = pandas.read_parquet(compared / "rounds.parquet")
    for policy in ("margin", "random_pick", "uniform"):
        found = read(folder / policy)
        for task in ("digits", "iris"):
            of = rounds[(rounds["policy"] == policy) & (rounds["task"] == task)].groupby("bought")["accuracy"]
            mean, reach = of.mean(), scipy.stats.t.ppf(0.975, 2) * of.std() / np.sqrt(3)
            for name, curve in (("mean", mean), ("low", mean - reach), ("high", mean + reach)):
                scalars = found.Scalars(f"{task}/{name}")
                assert [e.step for e in scalars] == [12, 16, 20]
                assert [e.value for e in scalars] == pytest.approx(list(curve), abs=1e-6)


def test_bands_are_laid_out_once_for_all_policies(compared: Path) -> None:
    layouts = []
    for run in (compared / "tensorboard").iterdir():
        found = read(run)
        layouts += found.Tensors("custom_scalars__config__") if "custom_scalars__config__" in found.Tags()["tensors"] else []
    assert len(layouts) == 1
    layout = layout_pb2.Layout.FromString(layouts[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["digits", "iris"]
    series = layout.category[0].chart[0].margin.series[0]
    assert (series.value, series.lower, series.upper) == ("digits/mean", "digits/low", "digits/high")


def test_the_projector_shows_who_bought_what_of_one_pool(compared: Path) -> None:
    folder = compared / "tensorboard" / "pool"
    (table,) = folder.rglob("metadata.tsv")
    head, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert head == ["class", "random_pick: bought in round", "uniform: bought in round", "margin: bought in round"]
    assert len(rows) == len(library_pool()) == len((table.parent / "tensors.tsv").read_text().splitlines())
    for column in (1, 2, 3):
        counts = Counter(row[column] for row in rows)
        assert (counts["0"], counts["1"], counts["2"]) == (12, 4, 4)
    first = {row[column] == "0" for row in rows for column in (1,)}
    assert first == {True, False}
    assert [row[1] == "0" for row in rows] == [row[2] == "0" for row in rows], "they share the initial set"
    assert (table.parent / "sprite.png").exists()


def library_pool() -> Any:
    return assemble(dataset="digits", device="cpu").task(0)
