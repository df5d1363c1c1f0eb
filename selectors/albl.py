"""Active Learning by Learning (Hsu & Lin, AAAI 2015): EXP4.P (Beygelzimer et al., AISTATS 2011) over query strategies."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alenv.ballot import Ballot
from alenv.campaign import weights_action
from alenv.selector import Context, Observation, Selector, Transition


class ALBL(Selector):
    """A bandit whose experts are the candidates and the uniform sampler.

    With K experts and T purchases in the whole campaign, every purchase i drawn with probability q_i from the mixture p of the
    experts' advice psi updates each expert k by

        w_k <- w_k exp(p_min / 2 (r psi_k(i) / q_i + sqrt(ln(K / delta) / (K T)) / p_k)),
        p_k = (1 - K p_min) w_k / sum w + p_min,

    with p_min = sqrt(ln K / (K T)). The paper buys one sample a round; in a batch, p and r are those of the round.

    Deviations: p_min is clipped to 1/K (the paper's formula exceeds it for T < K ln K and makes probabilities negative), and
    purchases are drawn without replacement, so a redrawn labelled sample never occurs.

    Args:
        reward: "iw_accuracy" is the paper's importance-weighted accuracy, a level that grows whatever is pulled;
            "normalized_gain" is the gain of validation accuracy scaled to [0, 1], from which the bandit can learn within
            few rounds.
        delta: failure probability of the regret bound.
    """

    action_kind = "mix"
    mixing = "slots"
    requires = ("uniform",)

    def __init__(self, reward: Literal["iw_accuracy", "normalized_gain"] = "iw_accuracy", delta: float = 0.1) -> None:
        if not 0 < delta < 1:
            raise ValueError(f"albl: expected delta between 0 and 1, got {delta}")
        self.reward, self.delta = reward, delta

    def begin(self, context: Context) -> None:
        """Start from equal weights."""
        super().begin(context)
        self._experts = len(context.strategies)
        self._horizon = max(1, context.plan.batch * context.plan.rounds)
        self._floor = min(1 / self._experts, math.sqrt(math.log(self._experts) / (self._experts * self._horizon)))
        self._log_weights = torch.zeros(self._experts, dtype=torch.float64)

    @property
    def probabilities(self) -> Float[Tensor, " K"]:
        """p: what each expert's next draw is worth; at least p_min each, sums to one."""
        return (1 - self._experts * self._floor) * self._log_weights.softmax(0) + self._floor

    def act(self, observation: Observation, ballot: Ballot) -> Any:
        """Return the action whose weights are p."""
        return weights_action(self.probabilities)

    def update(self, transition: Transition) -> dict[str, float]:
        """Apply the EXP4.P update for every sample bought."""
        p = self.probabilities
        bonus = math.sqrt(math.log(self._experts / self.delta) / (self._experts * self._horizon)) / p
        advice, propensity = transition.query.advice.to(p), transition.query.propensity.to(p)
        estimates = transition.reward * advice / propensity.clamp(min=1e-12)  # (K, B)
        self._log_weights = self._log_weights + self._floor / 2 * (estimates + bonus.unsqueeze(1)).sum(1)
        self._log_weights = self._log_weights - self._log_weights.max()
        after = self.probabilities.tolist()
        return {f"probability/{name}": value for name, value in zip(self.context.strategies, after, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return {"log_weights": self._log_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._log_weights = state["log_weights"].to(self._log_weights)
