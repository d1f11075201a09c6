"""AdamW for all parameters, or Muon for the matrices and AdamW for the rest, as one optimizer.

The names of its state are the same in JAX, so that a run can be resumed in either engine:
adamw.first.NAME, adamw.second.NAME, muon.momentum.NAME.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from headway.torch import devices
from headway.training import muon
from headway.training.settings import TrainingConfig

KINDS = ("muon.momentum", "adamw.first", "adamw.second")


@final
class Optimizer:
    """The optimizer of all parameters of a model.

    AdamW (Loshchilov and Hutter 2019; betas 0.9 and 0.95) in PyTorch's fused implementation; Muon
    as in `training.muon`. Weight decay applies to matrices, not to biases and norms.

    orthogonalized: computes the updates of Muon from its momenta, with a function such as
        `muon.updates`; by default with a call of it. Parameters that are split over processes
        need another one, because their rows alone are not enough.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        orthogonalized: Callable[..., Any] = lambda momenta, compute: compute(momenta),
    ) -> None:
        named = dict(model.named_parameters())
        self._decay = config.weight_decay
        with_muon = config.optimizer == "muon"
        self._muon = {n: p for n, p in named.items() if with_muon and muon.is_matrix(n, p.ndim)}
        self._adamw = {n: p for n, p in named.items() if n not in self._muon}
        self._momentum = {name: torch.zeros_like(p) for name, p in self._muon.items()}
        self._orthogonalized = orthogonalized
        matrices = [p for p in self._adamw.values() if p.ndim >= 2]
        others = [p for p in self._adamw.values() if p.ndim < 2]
        # The authors of Muon iterate in bfloat16, which is many times as fast where it is used.
        self._muon_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        self._updates = devices.compiled(muon.updates) if config.compile else muon.updates
        self._library = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )
        for parameter in self._adamw.values():
            self._library.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, rate: float, is_finite: Bool[Tensor, ""]) -> None:
        """Update every parameter with this learning rate; keep it if is_finite is False."""
        for group in self._library.param_groups:
            group["lr"] = rate
        # The fused implementation reads this attribute.
        setattr(self._library, "found_inf", (~is_finite).float())  # noqa: B010
        self._library.step()
        trained = {name: p for name, p in self._muon.items() if p.grad is not None}
        if not trained:
            return
        parameters = [local(parameter) for parameter in trained.values()]
        momenta = [local(self._momentum[name]) for name in trained]
        # If the step is not finite, the momentum takes the place of the gradient, so that it keeps
        # its value, and the learning rate is 0.
        gradients = [
            torch.where(is_finite, local(parameter.grad), momentum)  # type: ignore[arg-type]
            for parameter, momentum in zip(trained.values(), momenta, strict=True)
        ]
        rates = is_finite.to(momenta[0].dtype) * rate
        torch._foreach_lerp_(momenta, gradients, 1 - muon.MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, muon.MOMENTUM)
        updates = self._orthogonalized(
            dict(zip(trained, ahead, strict=True)), lambda m: self._updates(m, self._muon_dtype)
        )
        torch._foreach_mul_(parameters, 1 - rates * self._decay)
        steps = [*torch._foreach_mul([*updates.values()], rates)]
        torch._foreach_sub_(parameters, steps)

    def state(self) -> dict[str, Tensor]:
        """Return the state by name; the tensors are not copied."""
        momentum, first, second = KINDS
        state = {f"{momentum}.{name}": m for name, m in self._momentum.items()}
        for name, parameter in self._adamw.items():
            moments = self._library.state[parameter]
            state[f"{first}.{name}"] = moments["exp_avg"]
            state[f"{second}.{name}"] = moments["exp_avg_sq"]
        return state

    def count(self, step: int) -> None:
        """Set the number of steps that the state was reached after."""
        for parameter in self._adamw.values():
            self._library.state[parameter]["step"].fill_(step)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process, in the same memory; usually all of it."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
