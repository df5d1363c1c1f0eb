"""Does a learned policy over strategies pay on data it never saw? Area under the budget curve, paired by seed.

    python -m alenv.train_agent hydra.run.dir=runs/ppo
    python -m alenv.train_agent hydra.run.dir=runs/bandit 'learner={gamma: 0}'
    python -m alenv.train_agent hydra.run.dir=runs/imitation algorithm=imitation steps=2000 chapter=400
    python benchmarks/transfer.py [--seeds 20] [--agents NAME=FOLDER NAME=FOLDER/best ...] [--fashion-mnist FOLDER]

The agents are trained on Gaussian mixtures, wine and breast_cancer and tested here on what is none of them; without `--agents`
the one that comes with alenv is tested. All campaigns of one (data set, seed) share splits, initial labels and the first model.
"the best strategy in hindsight" is the best on the mean of all seeds, known only afterwards. "strategy oracle" tries every
strategy in every round and looks at the test split. Intervals are 95 % bootstrap intervals (BCa) of the mean paired difference.

What limits the policies is measured apart, a round at a time: from states that random picks lead to, every strategy's batch is
bought and trained on, and taken back. What a way of choosing wins over a random strategy is counted on one half of the test
split; "by the other half" chooses by the other one: about all that one round offers. "by validation" chooses by what the reward
measures.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from gymnasium.vector import AutoresetMode
from jaxtyping import Float, Int
from torch import Tensor

from alenv.agent_trainer import greedy
from alenv.agents import load_agent, seen, shipped
from alenv.campaign import Plan
from alenv.families import family
from alenv.imitation import looked_ahead
from alenv.record import area_under_curve
from alenv.runner import versions
from alenv.streams import Streams
from alenv.vector_env import ActiveLearningVectorEnv

STRATEGIES = ["uniform", "margin", "entropy", "kmeans", "typiclust", "coreset", "bald"]
TRAINED = "mixtures, as in training"
SMALL = {"initial": 6, "batch": 6, "rounds": 10}
TASKS: dict[str, tuple[Any, dict[str, int]]] = {
    "iris": ("iris", SMALL),
    "honeypot": ("honeypot", SMALL),
    "digits": ("digits", {"initial": 20, "batch": 20, "rounds": 10}),
    "fashion_mnist, 5 classes": (
        {"dataset": {"name": "fashion_mnist"}, "classes": 5, "size": 600, "components": 32},
        {"initial": 10, "batch": 10, "rounds": 10},
    ),
    TRAINED: ({"name": "mixtures", "size": 400}, SMALL),
}
Act = Callable[[ActiveLearningVectorEnv, Mapping[str, Any]], npt.NDArray[Any]]


def fixed(s: int) -> Act:
    """Return the policy of one strategy."""
    return lambda env, _: np.full(env.num_envs, s)


def tcm(env: ActiveLearningVectorEnv, _: Any) -> npt.NDArray[Any]:
    """Act as TCM: TypiClust for three rounds, then margin."""
    return np.full(env.num_envs, STRATEGIES.index("typiclust" if env.envs[0].campaign.index <= 3 else "margin"))


def oracle(env: ActiveLearningVectorEnv, _: Any) -> npt.NDArray[Any]:
    """Act as the strategy oracle does; ties fall by lot."""
    return first_of(torch.stack([looked_ahead(one, len(STRATEGIES)) for one in env.envs]), env.envs[0].campaign.index).numpy()


def agent(path: Path, sample: bool = False) -> Act:
    """Return a learned policy: its likeliest strategies, or draws."""
    net = load_agent(path).net

    def act(env: ActiveLearningVectorEnv, observations: Mapping[str, Any]) -> npt.NDArray[Any]:
        index = env.envs[0].campaign.index
        if not sample:
            return greedy(net, observations, len(STRATEGIES), "pick", np.random.default_rng(index))
        with torch.inference_mode():
            weights = net(*seen(observations, len(STRATEGIES)))[0][:, :, 0].softmax(1)
        return torch.multinomial(weights, 1, generator=Streams(index)("draws"))[:, 0].numpy()

    return act


def policies(agents: Mapping[str, Path]) -> dict[str, tuple[str, Act]]:
    """Return policies by name, each with its kind of action."""
    made: dict[str, tuple[str, Act]] = {}
    for name, path in agents.items():
        made |= {name: ("pick", agent(path)), f"{name}, drawn": ("pick", agent(path, sample=True))}
    made["uniform mixture"] = ("mix", lambda env, _: np.zeros((env.num_envs, len(STRATEGIES)), np.float32))
    made["random picks"] = (
        "pick",
        lambda env, _: np.random.default_rng(env.envs[0].campaign.index).integers(7, size=env.num_envs),
    )
    made["tcm"] = ("pick", tcm)
    made |= {name: ("pick", fixed(s)) for s, name in enumerate(STRATEGIES)}
    made["strategy oracle"] = ("pick", oracle)
    return made


def areas(spec: Any, budget: Mapping[str, int], seeds: int, kind: str, act: Act) -> npt.NDArray[np.float64]:
    """Return (seeds,) areas under the curve of test accuracy over purchases."""
    plan = Plan(**budget, action=kind)  # type: ignore[arg-type]
    problem = family(spec, STRATEGIES, plan, device="cpu")
    env = ActiveLearningVectorEnv(seeds, problems=problem, autoreset_mode=AutoresetMode.DISABLED, max_strategies=len(STRATEGIES))
    observations, _ = env.reset(seed=0)
    for _ in range(plan.rounds):
        observations = env.step(act(env, observations))[0]
    records = [one.campaign.records for one in env.envs]
    return np.array(
        [area_under_curve([r.bought for r in rows], [r.metrics["accuracy"] or 0.0 for r in rows]) for rows in records]
    )


def interval(differences: npt.NDArray[np.float64]) -> str:
    """Return the mean difference and its interval, in points."""
    if np.ptp(differences) == 0:
        return f"{100 * differences.mean():+.2f}"
    found = scipy.stats.bootstrap((differences,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return f"{100 * differences.mean():+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def table(
    task: str, budget: Mapping[str, int], found: Mapping[str, npt.NDArray[np.float64]], names: Iterable[str]
) -> Iterable[str]:
    """Yield one data set's table: every policy, and what each agent gains over it."""
    names = list(names)
    seeds = len(next(iter(found.values())))
    yield f"\n## {task}: {budget['initial']} + {budget['rounds']} x {budget['batch']} labels, {seeds} seeds\n"
    yield "| policy | area, mean (sd over seeds) | " + " | ".join(f"{name} minus it, points [95 %]" for name in names) + " |"
    yield "|---|---|" + "---|" * len(names)
    best = max(STRATEGIES, key=lambda name: found[name].mean())
    for name, values in sorted(found.items(), key=lambda item: -item[1].mean()):
        differences = " | ".join("" if name == other else interval(found[other] - values) for other in names)
        called = f"{name} (the best strategy in hindsight)" if name == best else name
        yield f"| {called} | {values.mean():.4f} ({values.std(ddof=1):.4f}) | {differences} |"


class Ahead(NamedTuple):
    """What each strategy's batch would lead to in E states: accuracy on the halves of the test split and on validation."""

    counted: Float[Tensor, "E S"]
    other: Float[Tensor, "E S"]
    validation: Float[Tensor, "E S"]


def ahead(env: ActiveLearningVectorEnv) -> Ahead:
    """Buy, train and test each strategy's batch in every campaign; nothing stays bought."""
    rows = []
    for one in env.envs:
        campaign, problem = one.campaign, one.problem
        queries = [campaign.suppose(s) for s in range(len(STRATEGIES))]
        models = problem.trainer.fit_many([campaign.rehearse(q, problem.oracle.label(q.indices)) for q in queries])
        test, held = campaign.task.test.known, campaign.task.validation.known
        right = torch.stack([model(test.inputs[:]).argmax(1) == test.targets for model in models]).double()
        seen = torch.stack([model(held.inputs[:]).argmax(1) == held.targets for model in models]).double()
        rows.append(torch.stack([right[:, ::2].mean(1), right[:, 1::2].mean(1), seen.mean(1)]))
    return Ahead(*torch.stack(rows, 1))


def first_of(scores: Float[Tensor, "E S"], seed: int) -> Int[Tensor, " E"]:
    """Return the highest of each row; ties fall by lot."""
    lots = torch.rand(scores.shape, generator=Streams(seed)("ties"))
    return torch.where(scores == scores.amax(1, keepdim=True), lots, -1.0).argmax(1)


def one_round(spec: Any, budget: Mapping[str, int], seeds: int, agents: Mapping[str, Path]) -> str:
    """Return the cells of one data set: what ways of choosing win in a round, in points of test accuracy."""
    problem = family(spec, STRATEGIES, Plan(budget["initial"], budget["batch"], budget["rounds"]), device="cpu")
    env = ActiveLearningVectorEnv(seeds, problems=problem, autoreset_mode=AutoresetMode.DISABLED, max_strategies=len(STRATEGIES))
    acts = {name: agent(path) for name, path in agents.items()}
    wins: dict[str, list[Tensor]] = {}
    gains, noisy, every = [], [], []
    observations, _ = env.reset(seed=10**6)
    for round in range(budget["rounds"]):
        found = ahead(env)
        picks = {"by the other half": first_of(found.other, round), "by validation": first_of(found.validation, round)}
        picks |= {name: torch.as_tensor(act(env, observations)) for name, act in acts.items()}
        centred = found.counted - found.counted.mean(1, keepdim=True)
        for name, chosen in picks.items():
            wins.setdefault(name, []).append(centred.gather(1, chosen.unsqueeze(1))[:, 0])
        every.append(centred)
        gains.append(centred.flatten())
        noisy.append((found.validation - found.validation.mean(1, keepdim=True)).flatten())
        observations = env.step(np.random.default_rng(round).integers(len(STRATEGIES), size=seeds))[0]
    steady = torch.cat(every).mean(0)
    wins["the best strategy in hindsight"] = [torch.cat(every)[:, int(steady.argmax())]]
    correlation = torch.corrcoef(torch.stack([torch.cat(gains), torch.cat(noisy)]))[0, 1]
    order = ["by the other half", "by validation", "the best strategy in hindsight", *agents]
    means = {name: torch.cat(wins[name]) for name in order}
    cells = [f"{100 * float(m.mean()):+.2f} ± {100 * float(m.std()) / len(m) ** 0.5:.2f}" for m in means.values()]
    return " | ".join([*cells, f"{float(correlation):.2f}"])


def main() -> None:
    """Run every policy on every data set and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--agents", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--fashion-mnist", help="folder of the IDX files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "transfer.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    agents = {name: Path(path) for name, _, path in (word.partition("=") for word in options.agents)} or {"ppo": shipped("ppo")}
    made = {name: load_agent(path).made for name, path in agents.items()}
    lines = ["# Learned policies on data they never saw", "", f"alenv {versions()['alenv']}, torch {torch.__version__}, CPU.", ""]
    lines += ["| agent | made by | steps | s |", "|---|---|---|---|"]
    lines += [f"| {name} | `{how['command']}` | {how['steps']} | {how['seconds']:.0f} |" for name, how in made.items()]
    start = time.perf_counter()
    heads = ["by the other half", "by validation", "the best strategy in hindsight", *agents]
    rounds = ["\n## What one round offers, points of test accuracy over a random strategy, ± standard error\n"]
    rounds += ["| data | " + " | ".join(heads) + " | correlation of validation and test |", "|---|" + "---|" * (len(heads) + 1)]
    for task in options.tasks:
        spec, budget = TASKS[task]
        if "fashion" in task:
            if not options.fashion_mnist:
                continue
            spec = {**spec, "dataset": {"name": "fashion_mnist", "root": options.fashion_mnist}}
        rounds.append(f"| {task} | {one_round(spec, budget, options.seeds, agents)} |")
        if task != TRAINED:
            found = {name: areas(spec, budget, options.seeds, kind, act) for name, (kind, act) in policies(agents).items()}
            lines += table(task, budget, found, agents)
        print(f"{task}: {time.perf_counter() - start:.0f} s", flush=True)
        options.out.write_text("\n".join(lines + rounds) + "\n", encoding="utf-8")
    print("\n".join(lines + rounds))


if __name__ == "__main__":
    main()
