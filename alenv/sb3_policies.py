"""`StrategyNet` as policies of Stable-Baselines3: PPO and MaskablePPO (actor, critic), DQN (values), SAC (actor, critics)."""

from typing import Any

import gymnasium
import torch
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, SACPolicy
from torch import Tensor, nn

from alenv.agents import StrategyNet, seen

NEVER = -1e8  # the logit or value of a strategy that is not there; finite, so that entropies are
Observations = dict[str, Tensor]


class AsTheyAre(BaseFeaturesExtractor):
    """Hands observations on."""

    def __init__(self, observation_space: gymnasium.Space[Any]) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: Observations) -> Observations:
        """Return the observations."""
        return observations


def rated(net: StrategyNet, observations: Observations, count: int) -> Tensor:
    """Return (E, count) what `net` says of each strategy, `NEVER` where there is none."""
    given = seen(observations, count)
    return net(*given)[0][:, :, 0].masked_fill(given.mask == 0, NEVER)


class ActorCritic(nn.Module):
    """Two nets, in the place of Stable-Baselines3's MLP extractor: (E, S) logits and (E, 1) values.

    Args:
        count: S.
        hidden: width of the nets.
    """

    def __init__(self, count: int, hidden: int) -> None:
        super().__init__()
        self.count = count
        self.actor = StrategyNet(outputs=1, hidden=hidden)
        self.critic = StrategyNet(outputs=0, summaries=1, hidden=hidden)
        assert self.actor.each is not None
        last = self.actor.each[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.01)  # nearly uniform at first

    def forward(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """Return logits and values."""
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: Observations) -> Tensor:
        """Return logits."""
        return rated(self.actor, observations, self.count)

    def forward_critic(self, observations: Observations) -> Tensor:
        """Return values."""
        return self.critic(*seen(observations, self.count))[1]


class _OfStrategies:
    """What the two actor-critic policies share.

    Args:
        hidden: width of the nets.
    """

    def __init__(self, *arguments: Any, hidden: int = 64, **named: Any) -> None:
        self.hidden = hidden
        super().__init__(*arguments, features_extractor_class=AsTheyAre, **named)  # type: ignore[call-arg]

    def _build(self: Any, lr_schedule: Any) -> None:
        self.mlp_extractor = ActorCritic(int(self.action_space.n), self.hidden)
        self.action_net, self.value_net = nn.Identity(), nn.Identity()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def agent(self: Any) -> StrategyNet:
        """What a selector needs of the policy."""
        return self.mlp_extractor.actor


class PickPolicy(_OfStrategies, ActorCriticPolicy):
    """For PPO."""


def masked_pick_policy() -> type[Any]:
    """Return the same for MaskablePPO, which sb3-contrib holds."""
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

    return type("MaskedPickPolicy", (_OfStrategies, MaskableActorCriticPolicy), {})


class _Values(nn.Module):
    def __init__(self, count: int, hidden: int) -> None:
        super().__init__()
        self.count, self.net = count, StrategyNet(outputs=1, hidden=hidden)

    def forward(self, observations: Observations) -> Tensor:
        return rated(self.net, observations, self.count)


class ValuePolicy(DQNPolicy):
    """For DQN.

    Args:
        hidden: width of the nets.
    """

    def __init__(self, *arguments: Any, hidden: int = 64, **named: Any) -> None:
        self.hidden = hidden
        super().__init__(*arguments, features_extractor_class=AsTheyAre, **named)

    def make_q_net(self) -> QNetwork:
        """Return a network of values."""
        made = QNetwork(**self._update_features_extractor({**self.net_args, "net_arch": []}))
        made.q_net = _Values(int(self.action_space.n), self.hidden)
        return made.to(self.device)

    @property
    def agent(self) -> StrategyNet:
        """What a selector needs of the policy."""
        return self.q_net.q_net.net


class MixActor(Actor):
    """A squashed Gaussian for every strategy."""

    def __init__(self, *, hidden: int = 64, **named: Any) -> None:
        super().__init__(**{**named, "net_arch": []})
        self.latent_pi = self.mu = self.log_std = nn.Identity()
        self.action_dist = SquashedDiagGaussianDistribution(int(self.action_space.shape[0]))
        self.net = StrategyNet(outputs=2, hidden=hidden)

    def get_action_dist_params(self, obs: Observations) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return mean and log standard deviation, (E, S) each."""
        out = self.net(*seen(obs, int(self.action_space.shape[0])))[0]
        return out[:, :, 0], out[:, :, 1].clamp(LOG_STD_MIN, LOG_STD_MAX), {}


class MixCritic(BaseModel):
    """Values of mixtures: each strategy's action is one of its inputs."""

    def __init__(self, *, hidden: int = 64, n_critics: int = 2, **named: Any) -> None:
        super().__init__(named["observation_space"], named["action_space"], features_extractor=named["features_extractor"])
        self.nets = nn.ModuleList(StrategyNet(outputs=0, summaries=1, hidden=hidden, extra=1) for _ in range(n_critics))

    def forward(self, obs: Observations, actions: Tensor) -> tuple[Tensor, ...]:
        """Return (E, 1) of each critic."""
        given = seen(obs, actions.shape[1])
        return tuple(net(*given, actions.unsqueeze(2))[1] for net in self.nets)


class MixPolicy(SACPolicy):
    """For SAC; every campaign has the same number of strategies.

    Args:
        hidden: width of the nets.
    """

    def __init__(self, *arguments: Any, hidden: int = 64, **named: Any) -> None:
        self.hidden = hidden
        super().__init__(*arguments, features_extractor_class=AsTheyAre, **named)

    def make_actor(self, features_extractor: Any = None) -> MixActor:
        """Return the actor."""
        return MixActor(hidden=self.hidden, **self._update_features_extractor(self.actor_kwargs, features_extractor)).to(
            self.device
        )

    def make_critic(self, features_extractor: Any = None) -> Any:
        """Return two critics."""
        return MixCritic(hidden=self.hidden, **self._update_features_extractor(self.critic_kwargs, features_extractor)).to(
            self.device
        )

    @property
    def agent(self) -> StrategyNet:
        """What a selector needs of the policy."""
        return self.actor.net
