"""Muon: momentum whose every update of a weight matrix is made orthogonal, beside AdamW for all other parameters.

Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). On the small transformers and
UNets of this project it needs about half of AdamW's steps. A kernel counts as the matrix (output channels, all else).
One optimiser holds both kinds of parameters, because Lightning steps one.
"""

# torch's optimisers use these functions too, but torch does not list them as its own.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from modules.hardware import native_bfloat16

# Quintic Newton-Schulz iteration: moves all singular values near 1 in five rounds (0.7 to 1.2 is near enough).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (half-)orthogonal matrices, about: (N, R, C) -> (N, R, C) with singular values near 1.

    In bfloat16, which is exact enough for it, where the hardware has that.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if native_bfloat16(x.device.type) else x
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Muon for the groups with `muon=True`, AdamW for the others.

    Args:
        groups: parameter groups; Muon's hold matrices and kernels alone.
        lr, betas: of groups that have none of their own.
        momentum: of Muon (Nesterov).
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            (self._muon if group["muon"] else self._adam)(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for param in params:
            by_shape.setdefault((param.shape[0], param[0].numel()), []).append(param)
        for (rows, columns), alike in by_shape.items():
            grads = [param.grad.flatten(1) for param in alike if param.grad is not None]
            momenta = [self._state(param, "momentum").view(rows, columns) for param in alike]
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, momenta, group["momentum"])
            # Matrices of one shape in one batched product.
            size = group["lr"] * max(1.0, rows / columns) ** 0.5
            steps = orthogonalise(torch.stack(updates)) * size
            torch._foreach_sub_(alike, [step.view_as(param) for step, param in zip(steps, alike, strict=True)])

    def _adam(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [param.grad for param in params if param.grad is not None]
        first, second = ([self._state(param, name) for param in params] for name in ("first", "second"))
        group["steps"] = group.get("steps", 0) + 1
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        correction1, correction2 = 1 - beta1 ** group["steps"], 1 - beta2 ** group["steps"]
        scale = torch._foreach_sqrt(torch._foreach_div(second, correction2))
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_addcdiv_(params, first, scale, -group["lr"] / correction1)

    def _state(self, param: Tensor, name: str) -> Tensor:
        state = self.state[param]
        if name not in state:
            state[name] = torch.zeros_like(param)
        return state[name]
