"""Optimizers, which parameters they decay, how fast each part learns, and gradient clipping.

Two readings of "weight decay" (Loshchilov & Hutter 2019, arXiv:1711.05101). *Coupled*, as in `torch.optim.SGD`: decay
joins the gradient, so it is multiplied by the learning rate and summed up by momentum, and a constant learning rate
shrinks an idle weight by about `lr * weight_decay / (1 - momentum)` each step. *Decoupled*: the weight itself shrinks
by `weight_decay` each step at the peak learning rate, and in proportion below it. The same number is another recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from resnet_core.foundation.suggestions import did_you_mean

# By type: half of a ResNet's shortcuts hold a BatchNorm whose name, `downsample.1`, does not say so.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The rule that turns gradients into new weights."""

    name: str = "sgd"
    """sgd (torch's, decay in the gradient), decoupled_sgd (decay of the weights), or lamb (for large batches)."""
    lr: float = 0.1
    """Peak learning rate, after warm-up."""
    momentum: float = 0.9
    """Momentum of sgd and decoupled_sgd; beta1 of lamb."""
    weight_decay: float = 1e-4
    """How strongly each step shrinks the weights; docs/training.md compares the coupled and the decoupled form."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    decay_norms: bool = True
    """Apply weight decay to the weights and biases of normalization layers."""
    decay_biases: bool = True
    """Apply weight decay to the biases of all other layers."""
    head_lr_factor: float = 1.0
    """Multiply the last layer's learning rate by this: above 1 if only that layer starts untrained."""
    max_grad_norm: float = math.inf
    """Clip the gradients to this global norm; inf turns clipping off."""

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer.name: unknown optimizer {self.name!r}; {did_you_mean(self.name, OPTIMIZERS)}")

        for key in ("lr", "head_lr_factor"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"optimizer.{key} must be positive and finite, got {getattr(self, key)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be at least 0 and less than 1, got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay must be at least 0 and finite, got {self.weight_decay}")

        if self.name == "decoupled_sgd" and self.weight_decay >= 1:
            raise ValueError(
                f"optimizer.weight_decay of decoupled_sgd is the share of a weight that a step removes and must be "
                f"below 1, got {self.weight_decay}; 5e-4 is usual"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs a positive optimizer.momentum, got 0")
        if self.nesterov and self.name == "lamb":
            raise ValueError("optimizer.nesterov works with sgd and decoupled_sgd only; leave it false for lamb")

        if not self.max_grad_norm > 0:
            raise ValueError(f"optimizer.max_grad_norm must be positive (inf: no clipping), got {self.max_grad_norm}")


class _Grouped(Optimizer):
    """An optimizer whose `update` changes a group's parameters that have gradients, all at once."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Does one update; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self.update(parameters, [parameter.grad for parameter in parameters], group)
        return loss

    def update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError


class DecoupledSGD(_Grouped):
    """SGD with momentum and decoupled weight decay (Loshchilov & Hutter 2019, algorithm 1).

    Each step `w <- w * (1 - weight_decay * lr / initial_lr)`, then `v <- momentum * v + g` and `w <- w - lr * v`, or
    with nesterov `w <- w - lr * (g + momentum * v)`. `initial_lr` is the peak learning rate, which each group keeps
    while a schedule changes its `lr`. Agrees with Composer's DecoupledSGDW; the state is named as `torch.optim.SGD`'s.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        velocities = self._zeros_at_first(parameters)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        directions = velocities
        if group["nesterov"]:
            directions = list(torch._foreach_add(gradients, velocities, alpha=group["momentum"]))

        torch._foreach_mul_(parameters, 1 - group["weight_decay"] * (group["lr"] / group["initial_lr"]))
        torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def _zeros_at_first(self, parameters: list[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]


class Lamb(_Grouped):
    """Adam whose step, layer by layer, is as long as the weights are (You et al. 2020, arXiv:1904.00962, algorithm 2).

    With Adam's bias-corrected direction `r`, `u = r + weight_decay * w` and `w <- w - lr * (|w| / |u|) * u`. Where
    either norm is 0 the ratio is 1. A group without weight decay keeps Adam's own length: what is exempt from decay is
    exempt from the ratio too, as in the authors' code and timm's. Neither clips: see `clip_gradients`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        updates = self._adam_directions(parameters, gradients, group)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            torch._foreach_mul_(updates, _trust_ratios(parameters, updates))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _adam_directions(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """Mean over root mean square of the gradients so far, both corrected for having started at 0."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

        states = [self.state[parameter] for parameter in parameters]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1)

        steps = [state["step"].item() for state in states]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        lengths = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(lengths)
        torch._foreach_add_(lengths, group["eps"])

        directions = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(directions, lengths)
        return list(directions)


def _trust_ratios(parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    pairs = zip(torch._foreach_norm(parameters), torch._foreach_norm(updates), strict=True)
    return [torch.where((weight > 0) & (update > 0), weight / update, 1.0) for weight, update in pairs]


# Name -> optimizer of parameter groups. For parameters on a GPU torch's SGD chooses its "foreach" form, a few kernels
# for all parameters; the two of this file always have it.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig], Optimizer]] = {
    "sgd": lambda groups, config: SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov),
    "decoupled_sgd": lambda groups, config: DecoupledSGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
    ),
    "lamb": lambda groups, config: Lamb(groups, lr=config.lr, betas=(config.momentum, 0.999)),
}


def build_optimizer(model: nn.Module, config: OptimizerConfig, head: nn.Module | None = None) -> Optimizer:
    """The named optimizer over `parameter_groups(model, config, head)`. Raises what that raises."""
    return OPTIMIZERS[config.name](parameter_groups(model, config, head), config)


def parameter_groups(model: nn.Module, config: OptimizerConfig, head: nn.Module | None = None) -> list[dict[str, Any]]:
    """Groups for an optimizer: each parameter that is trained, once, grouped by weight decay and learning rate.

    Parameters keep the order of `model.parameters()`, and groups that of their first member. Each group has `params`,
    `weight_decay`, `lr_scale` (its learning rate over the schedule's) and `lr`, the peak. `head` is the part of the
    model to which `head_lr_factor` applies. Raises ValueError if that factor is not 1 and there is no head.
    """
    if head is None and config.head_lr_factor != 1:
        raise ValueError(
            f"optimizer.head_lr_factor is {config.head_lr_factor}, but this model names no head; leave it at 1"
        )

    exempt = exempt_from_decay(model, config)
    in_head = set(head.parameters()) if head is not None else set()

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in filter(lambda each: each.requires_grad, model.parameters()):
        weight_decay = 0.0 if parameter in exempt else config.weight_decay
        lr_scale = config.head_lr_factor if parameter in in_head else 1.0
        groups.setdefault((weight_decay, lr_scale), []).append(parameter)

    return [
        {"params": parameters, "weight_decay": weight_decay, "lr_scale": lr_scale, "lr": config.lr * lr_scale}
        for (weight_decay, lr_scale), parameters in groups.items()
    ]


def exempt_from_decay(model: nn.Module, config: OptimizerConfig) -> dict[nn.Parameter, str]:
    """Parameters without weight decay, with their names: those of norms, the biases of other layers, or both."""
    exempt = {}
    for path, module in model.named_modules():
        is_norm = isinstance(module, NORMS)
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            is_bias = not is_norm and parameter is getattr(module, "bias", None)
            if (is_norm and not config.decay_norms) or (is_bias and not config.decay_biases):
                exempt[parameter] = name
    return exempt


def clip_gradients(parameters: Iterable[Tensor], max_norm: float = math.inf) -> Tensor:
    """Scales gradients down to `max_norm` in place; returns their norm before that, over all parameters together.

    Pascanu et al. 2013, arXiv:1211.5063. The default scales nothing. If any gradient is not finite, neither is the
    norm, and the step should not be done.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm < math.inf:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `"layer1.0.conv1.weight/momentum_buffer" -> tensor`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `optimizer_tensors` returned, in the memory format of the parameters.

    A checkpoint holds contiguous tensors, and the sum in a norm follows the order in memory.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {names[parameter]: number for number, parameter in enumerate(parameters)}

    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter_name, key = name.rsplit("/", 1)
        number = numbers[parameter_name]
        if value.shape == parameters[number].shape:
            value = torch.empty_like(parameters[number], dtype=value.dtype).copy_(value)
        state.setdefault(number, {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
