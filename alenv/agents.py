"""Policies learned on many campaigns beforehand: nets that treat all strategies alike, their files, and their selectors."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from alenv.ballot import Ballot
from alenv.durable import write_atomically
from alenv.observation import CAMPAIGN_FEATURES, STRATEGY_FEATURES
from alenv.selector import Context, Observation, Selector, Transition

FORMAT = 1
FEATURES = {"campaign": list(CAMPAIGN_FEATURES), "strategies": list(STRATEGY_FEATURES)}
OUTPUTS = {"ppo": 1, "maskable_ppo": 1, "imitation": 1, "dqn": 1, "sac": 2}  # numbers for each strategy


class StrategyNet(nn.Module):
    """Some numbers for every strategy, and some for the campaign, whatever the number and the order of strategies.

    Deep sets (Zaheer et al., NeurIPS 2017): one shared net encodes each strategy together with the campaign; what the others are
    enters as mean and maximum over strategies. So permuted strategies give permuted outputs, padding changes nothing, and what
    was learned with S strategies runs with any other S. O(S hidden^2) per campaign.

    Args:
        outputs: numbers for each strategy.
        summaries: numbers for the campaign.
        hidden: width of all layers.
        extra: further inputs for each strategy (a critic's actions).
    """

    def __init__(self, outputs: int = 1, summaries: int = 0, hidden: int = 64, extra: int = 0) -> None:
        super().__init__()
        self.arguments = {"outputs": outputs, "summaries": summaries, "hidden": hidden, "extra": extra}
        inputs = len(CAMPAIGN_FEATURES) + len(STRATEGY_FEATURES) + extra
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.each = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)) if outputs else None
        self.whole = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, summaries)) if summaries else None

    def forward(
        self, campaign: Float[Tensor, "E F"], strategies: Float[Tensor, "E S G"], mask: Float[Tensor, "E S"],
        extra: Float[Tensor, "E S X"] | None = None,
    ) -> tuple[Float[Tensor, "E S outputs"], Float[Tensor, "E summaries"]]:  # fmt: skip
        """Return the outputs of each strategy and of the campaign; a mask of 0 says that there is no strategy."""
        size = strategies.shape[1]
        shared = campaign.unsqueeze(1).expand(-1, size, -1)
        parts = [shared, strategies] if extra is None else [shared, strategies, extra]
        codes = self.encoder(torch.cat(parts, 2))
        there = mask.unsqueeze(2)
        mean = (codes * there).sum(1) / there.sum(1).clamp(min=1)
        most = codes.masked_fill(there == 0, -1).amax(1)  # -1: the least that tanh gives
        pooled = torch.cat([mean, most], 1)
        empty = codes[:, :, :0]
        each = empty if self.each is None else self.each(torch.cat([codes, pooled.unsqueeze(1).expand(-1, size, -1)], 2))
        return each, empty[:, 0] if self.whole is None else self.whole(pooled)


class Seen(NamedTuple):
    """Observations as `StrategyNet` takes them."""

    campaign: Float[Tensor, "E F"]
    strategies: Float[Tensor, "E S G"]
    mask: Float[Tensor, "E S"]


def seen(observations: Mapping[str, Any], count: int | None = None) -> Seen:
    """Return observations of one or many campaigns as tensors, cut to the first `count` strategies."""
    campaign, table, mask = (torch.as_tensor(observations[key]).float() for key in ("campaign", "strategies", "mask"))
    campaign, mask = campaign.reshape(-1, campaign.shape[-1]), mask.reshape(-1, mask.shape[-1])
    return Seen(campaign, table.reshape(*mask.shape, -1)[:, :count], mask[:, :count])


class Agent(NamedTuple):
    """A learned policy.

    Attributes:
        net: what `selector` acts by.
        algorithm: what trained it, see `OUTPUTS`.
        made: how: command, seed, steps, seconds, versions.
    """

    net: StrategyNet
    algorithm: str
    made: dict[str, Any]


def save_agent(path: str | Path, agent: Agent) -> None:
    """Write `path` (.safetensors, the weights) and, beside it, a JSON file that says what to build and how it was made."""
    path = Path(path)
    weights = {name: value.detach().cpu().contiguous() for name, value in agent.net.state_dict().items()}
    card = {
        "format": FORMAT, "algorithm": agent.algorithm, "net": agent.net.arguments, "features": FEATURES, "made": agent.made,
    }  # fmt: skip
    write_atomically(path, save(weights))
    write_atomically(path.with_suffix(".json"), json.dumps(card, indent=2, allow_nan=False) + "\n")


def load_agent(path: str | Path) -> Agent:
    """Return the agent in a file that `save_agent` wrote, or in a folder that `alenv.train_agent` left.

    Nothing is unpickled: our constructors rebuild the net.

    Raises:
        ValueError: there is none, it is damaged, or it reads other features than this version observes.
    """
    path = Path(path).expanduser()
    file = path / "agent.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
    card_file = file.with_suffix(".json")
    if not file.is_file() or not card_file.is_file():
        raise ValueError(
            f"no agent in {path.absolute()}: expected {file.name} and {card_file.name}; python -m alenv.train_agent makes them"
        )
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
        features = card["features"]
        with torch.device("meta"):  # no weights are drawn
            net = StrategyNet(**card["net"])
        if features == FEATURES:
            # cloned: products of tensors that lie in the file differ in their last bits, by where it begins in memory
            net.load_state_dict({name: value.clone() for name, value in load_file(file).items()}, assign=True)
        found = Agent(net.eval().requires_grad_(False), str(card["algorithm"]), dict(card["made"]))
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{file.absolute()} is damaged ({error}); train it again with python -m alenv.train_agent") from error
    if features != FEATURES:
        raise ValueError(
            f"{file.absolute()} was trained on other observations than this version of alenv makes; "
            "train it again with python -m alenv.train_agent"
        )
    return found


def shipped(algorithm: str) -> Path | None:
    """Return the file of the agent that comes with alenv, None if none does."""
    file = resources.files("alenv").joinpath("agents_shipped", f"{algorithm}.safetensors")
    return Path(str(file)) if file.is_file() else None


class AgentSelector(Selector):
    """Acts by a policy that was trained before, on other campaigns; it learns nothing while it runs.

    Attributes:
        algorithms: what may have trained it.
    """

    algorithms: ClassVar[tuple[str, ...]]

    def __init__(self, path: str | None = None) -> None:
        name = self.algorithms[0]
        source = shipped(name) if path is None else Path(path)
        if source is None:
            raise ValueError(
                f"selector {name} needs selector.path=<an agent>; train one with python -m alenv.train_agent algorithm={name}"
            )
        self.agent = load_agent(source)
        if self.agent.algorithm not in self.algorithms:
            raise ValueError(
                f"{source} holds an agent of {self.agent.algorithm}, which is no {name}; use selector={kind(self.agent)}"
            )
        self._weights: Tensor

    def begin(self, context: Context) -> None:
        """Start a campaign; nothing is remembered of earlier ones."""
        super().begin(context)
        self._weights = torch.full((len(context.strategies),), 1 / len(context.strategies))

    def scores(self, observation: Observation, count: int) -> Float[Tensor, "S outputs"]:
        """Return what the net says of each of the `count` strategies."""
        with torch.inference_mode():
            return self.agent.net(*seen(observation, count))[0][0]

    def update(self, transition: Transition) -> dict[str, float]:
        """Learn nothing; log the weights acted by."""
        return {f"weight/{name}": w for name, w in zip(self.context.strategies, self._weights.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the policy, so that a run continues with the one it began with."""
        return dict(self.agent.net.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the policy in `state`."""
        self.agent.net.load_state_dict(state)


class PickingSelector(AgentSelector):
    """Picks the strategy that the policy rates highest; ties fall by lot."""

    action_kind = "pick"

    def act(self, observation: Observation, ballot: Ballot) -> int:
        """Return the best-rated strategy."""
        scores = self.scores(observation, len(ballot.names))[:, 0]
        self._weights = self.weights(scores)
        return self.choice(scores, self.context.streams.on("cpu")(f"selector/{self.algorithms[0]}", ballot.round.index))

    def weights(self, scores: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Return the weights to log."""
        return (scores == scores.max()).float() / (scores == scores.max()).sum()

    def choice(self, scores: Float[Tensor, " S"], generator: torch.Generator) -> int:
        """Return an action."""
        return int(torch.multinomial((scores == scores.max()).float(), 1, generator=generator))


def kind(agent: Agent) -> str:
    """Return the selector that runs `agent`."""
    return "ppo" if agent.algorithm in ("maskable_ppo", "imitation") else agent.algorithm
