"""A campaign's ingredients, put together: what stays the same whoever selects."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alenv import library
from alenv.arrays import Rows
from alenv.campaign import Campaign, Plan
from alenv.embedding import Given, Shown, embedded
from alenv.encoder import Encoder, Providers, Unlabeled, default_folder
from alenv.gathered import Gathered
from alenv.heads import distinct
from alenv.initial import LABELLED, Initial
from alenv.initial import make as make_initial
from alenv.model import TaskModel
from alenv.oracle import Oracle, SimulatedOracle
from alenv.rewards import Gain, Reward, fallback
from alenv.strategy import Strategy, check_needs
from alenv.streams import Streams
from alenv.task import Source, Split, Task
from alenv.trainer import Trainer

NetFactory = Callable[..., TaskModel]
Setting = Callable[[Source, "float | int | None", Streams], Split]


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, setting, net, trainer, strategies, plan, reward and oracle.

    Attributes:
        source: the data set.
        setting: makes splits of it.
        net: `net(input_shape, num_outputs, mean, std)` makes a task model.
        trainer: trains it.
        strategies: candidates by name.
        plan: how much is bought and how.
        reward: what an action is worth.
        oracle: who answers.
        setting_name: what tasks call the setting.
        validation: size (>= 1) or share (< 1) of the validation split; None for 10 %, at most 200; 0 for none.
        initial_ids: ids of the initial set; None: `initial` chooses it.
        initial: how it is chosen; None: uniformly at random.
        joint: let strategies' heads train the body.
        providers: features for strategies that need some, by name.
    """

    source: Source
    setting: Setting
    net: NetFactory
    trainer: Trainer
    strategies: Mapping[str, Strategy]
    plan: Plan = field(default_factory=Plan)
    reward: Reward = field(default_factory=Gain)
    oracle: Oracle = field(default_factory=SimulatedOracle)
    setting_name: str = "standard"
    validation: float | int | None = None
    initial_ids: Sequence[str] | None = None
    initial: Initial | None = None
    joint: bool = False
    providers: Providers = field(default_factory=lambda: Providers({}))

    def __post_init__(self) -> None:
        self.plan.check(self.pool_size)
        if self.joint and len(self.strategies) > 1:
            raise ValueError(
                f"joint=true lets a strategy's head change the task model, so {len(self.strategies)} strategies would not be "
                "compared on the same one; use selector=fixed, which has one"
            )
        if self.initial is not None and self.initial.reads_labels and not isinstance(self.oracle, SimulatedOracle):
            raise ValueError("this initial set is chosen by hidden labels, which only oracle=simulated knows; use initial=random")

    @functools.cached_property
    def pool_size(self) -> int:
        """N; sizes of splits do not depend on the seed."""
        return len(self.setting(self.source, self.validation, Streams(0)).pool)

    def task(self, seed: int) -> Task:
        """Return the task of one seed, on the trainer's device; the last one is kept."""
        if seed not in self._tasks:
            self._tasks.clear()
            split = self.setting(self.source, self.validation, Streams(seed))
            self._tasks[seed] = Task.build(self.source, split, self.setting_name, self.trainer.device)
        return self._tasks[seed]

    @functools.cached_property
    def _tasks(self) -> dict[int, Task]:
        return {}

    def make_net(self, task: Task, num_outputs: int | None = None) -> TaskModel:
        """Return an untrained task model, or a companion of it with `num_outputs` outputs."""
        reads_tokens = "tokens" in inspect.signature(self.net).parameters
        if task.tokens is not None and not reads_tokens:
            raise ValueError(
                "this net would take numbers of tokens for measurements; use net=transformer, or dataset.text=tfidf "
                "(a net of your own that reads tokens has a parameter of that name)"
            )
        known = {"tokens": task.tokens} if reads_tokens else {}
        model = self.net(tuple(task.inputs.shape[1:]), task.num_classes, task.mean, task.std, **known)
        return model if num_outputs is None else model.companion(num_outputs)

    def campaign(self, seed: int, directory: Path | None = None) -> Campaign:
        """Return a campaign that has not begun.

        Raises:
            ValueError: the budget exceeds the pool, a strategy needs what the task lacks, or the reward needs what is missing.
        """
        task = self.task(seed)
        streams = Streams(seed)
        unlabeled = self._unlabeled(task, streams.on(self.trainer.device))
        self._check(task, streams)
        self.providers.check(unlabeled)
        begin = getattr(self.oracle, "begin", None)  # anything with label() will do
        if begin is not None:
            begin(task, streams, directory)
        features = self.providers.of(unlabeled)
        return Campaign(
            task, self.strategies, self.plan, self.trainer, functools.partial(self.make_net, task), streams,
            self.reward_for(task)[0], initial=self._initial(task, streams, features), joint=self.joint, features=features,
            audit=getattr(self.oracle, "purity_auroc", None),
        )  # fmt: skip

    def reward_for(self, task: Task) -> tuple[Reward, str]:
        """Return the reward that can be computed on `task`, and a sentence if it is not the one asked for."""
        return fallback(self.reward, len(task.validation) > 0, self.plan.by_lot)

    def _check(self, task: Task, streams: Streams) -> None:
        if self.reward.access == "test" and len(task.test) == 0:
            raise ValueError(f"reward {type(self.reward).__name__} needs a test split, which this data set has not")
        if self.plan.stop_accuracy is not None and len(task.validation) == 0:
            raise ValueError("stop.accuracy needs a validation split; set validation=, or drop stop.accuracy")
        with streams.scoped("init"):  # making weights draws from the global generators
            model = self.make_net(task)
        offered = {f"aux:{head.name}" for head in distinct(h for strategy in self.strategies.values() for h in strategy.heads())}
        offered |= {f"features:{name}" for name in self.providers.encoders}
        needing: dict[tuple[str, ...], list[str]] = {}  # what is not there -> who needs it
        for name, strategy in self.strategies.items():
            check_needs(strategy)
            lacking = {need for need in strategy.needs if need.startswith(("aux:", "features:"))} - offered
            lacking |= {"mc_probs"} & strategy.needs if not model.noisy else set()
            if lacking:
                needing.setdefault(tuple(sorted(lacking)), []).append(name)
        if needing:
            raise ValueError(_refusal(needing))

    def _unlabeled(self, task: Task, streams: Streams) -> Unlabeled:
        position = {id_: i for i, id_ in enumerate(self.source.train.ids)}
        device, inputs = self.trainer.device, task.inputs.copied() if isinstance(task.inputs, Gathered) else task.inputs
        return Unlabeled(
            inputs=inputs, positions=torch.tensor([position[id_] for id_ in task.ids], device=device), total=len(position),
            mean=task.mean, std=task.std, augmentation=task.augmentation,
            everything=Shown(self.source.train.inputs, self.source.train.texts, self.source.mean, self.source.std),
            folder=self.providers.folder, net=lambda: self.make_net(task, task.num_classes), trainer=self.trainer,
            streams=streams,
        )  # fmt: skip

    def note(self, task: Task) -> str:
        """Return what a person should know of this problem, in sentences."""
        peeks = self.initial is not None and self.initial.reads_labels
        said = ["the initial set was chosen with a look at hidden labels, which only a simulation can"] * peeks
        return "; ".join([*said, *filter(None, [self.reward_for(task)[1]])])

    def _initial(self, task: Task, streams: Streams, features: Mapping[str, Rows]) -> torch.Tensor | None:
        if self.initial is not None and self.initial_ids is None:
            return self._chosen(self.initial, task, streams, features)
        if self.initial_ids is None:
            return None
        position = {id_: i for i, id_ in enumerate(task.ids)}
        missing = [id_ for id_ in self.initial_ids if id_ not in position]
        if missing:
            raise ValueError(f"initial ids {missing[:3]} are not in the pool; ids look like '{task.ids[0]}'")
        return torch.tensor([position[id_] for id_ in self.initial_ids], device=self.trainer.device)

    def _chosen(self, initial: Initial, task: Task, streams: Streams, features: Mapping[str, Rows]) -> torch.Tensor:
        def rows(name: str | None) -> torch.Tensor:
            if name is None:
                return (task.inputs[:].float() - task.mean) / task.std
            if name not in features:
                raise ValueError(f"initial: no features '{name}'{library.nearest(name, features)}; set features={{{name}: ...}}")
            return features[name][torch.arange(len(task), device=self.trainer.device)]

        return initial.choose(task, rows, streams, self.plan.initial)


def assemble(
    *, dataset: Any = "digits", setting: Any = "standard", net: Any = "linear", trainer: Any = "default",
    strategies: Any = "autoal7", plan: Plan | None = None, reward: Any = "gain", oracle: Any = "simulated",
    device: str | None = None, validation: float | int | None = None, initial: Any = "random", joint: bool = False,
    required: Sequence[str] = (), features: Mapping[str, Any] | None = None, cache: str | None = "auto",
    embed: Any = None,
) -> Problem:  # fmt: skip
    """Build a problem from names (or mappings, or the things themselves), see `alenv.library.build`.

    `features` maps the names that strategies ask for to encoders; `cache` is the folder where those that took training are
    kept: "auto" is `alenv.encoder.default_folder`, None keeps none. `embed` is a frozen encoder whose features, kept there as
    well, take the place of the data set's inputs.
    """
    plan = plan or Plan()
    ids = [str(id_) for id_ in initial] if isinstance(initial, Sequence) and not isinstance(initial, str) else None
    built_trainer = library.build(
        "trainer", trainer, **({} if device is None or isinstance(trainer, Trainer) else {"device": device})
    )
    folder = default_folder() if cache == "auto" else Path(cache) if cache else None
    source = library.build("dataset", dataset)
    if embed is not None:
        source = embedded(source, _encoder(embed), built_trainer.device, folder)
    return Problem(
        source=source,
        setting=library.build("setting", setting),
        net=library.build("net", net),
        trainer=built_trainer,
        strategies=library.strategies(strategies, required),
        plan=plan if ids is None else replace(plan, initial=len(ids)),
        reward=library.build("reward", reward),
        oracle=library.build("oracle", oracle),
        setting_name=library.label(setting),
        validation=validation,
        initial_ids=ids,
        initial=None if ids is not None else _first_purchase(initial),
        joint=joint,
        providers=Providers(_encoders(features), folder),
    )


def _first_purchase(initial: Any) -> Initial | None:
    known = ["random", "known", *LABELLED, *library.names("strategy")]
    if isinstance(initial, str) and ":" not in initial and initial not in known:
        raise ValueError(f"unknown initial '{initial}'{library.nearest(initial, known)}; or give a list of ids")
    return make_initial(initial, functools.partial(library.build, "strategy"))


def _encoders(features: Mapping[str, Any] | None) -> dict[str, Encoder]:
    if not isinstance(features or {}, Mapping):
        raise ValueError(f"expected features to map names to encoders (features={{semantic: simclr}}), got {features!r}")
    return {name: _encoder(encoder) for name, encoder in (features or {}).items()}


def _encoder(encoder: Any) -> Encoder:
    """Return an encoder; a module or function of the user's own becomes a frozen one."""
    built = library.build("encoder", encoder)
    return built if isinstance(built, Encoder) else Given(built)


def _refusal(needing: Mapping[tuple[str, ...], Sequence[str]]) -> str:
    """Return who needs what the task does not offer, and what to do about it, a line each."""
    lines = []
    for lacking, names in needing.items():
        who = f"strategy '{names[0]}' needs" if len(names) == 1 else f"strategies {', '.join(map(repr, names))} need"
        others = [need for need in lacking if need != "mc_probs"]
        reasons = [f"{', '.join(others)}, which this task does not offer"] * bool(others)
        reasons += ["stochastic outputs, but the net has no dropout"] * ("mc_probs" in lacking)
        drop = f"drop {'it' if len(names) == 1 else 'them'} from strategies="
        lines.append(f"{who} {' and '.join(reasons)}; {', or '.join([*_remedies(lacking), drop])}")
    dropped = [name for names in needing.values() for name in names]
    if len(dropped) > 1:
        lines.append(f"to drop them from a set: strategies={{set: <its name>, without: [{', '.join(dropped)}]}}")
    return "\n".join(lines)


def _remedies(lacking: Sequence[str]) -> list[str]:
    names = [need.partition(":")[2] for need in lacking if need.startswith("features:")]
    mapping = ", ".join(f"{name}: {'csi' if name == 'distinctive' else 'simclr'}" for name in names)
    found = [f"set features={{{mapping}}} (encoders: {', '.join(library.names('encoder'))})"] * bool(names)
    return found + ["set net.dropout above 0"] * ("mc_probs" in lacking)
