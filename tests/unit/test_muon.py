"""Muon beside AdamW in one optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from modules.muon import Muon, orthogonalise
from modules.optim import OptimConfig, build_optimizer, param_groups


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 12, 30), (2, 30, 12)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3
    # The scale of a gradient does not matter, and a matrix alone gives what it gives in a batch.
    torch.testing.assert_close(orthogonalise(matrices * 1024), orthogonalise(matrices), rtol=0.05, atol=0.05)
    torch.testing.assert_close(orthogonalise(matrices[:1]), orthogonalise(matrices)[:1], rtol=0.05, atol=0.05)


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def train(network: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int) -> float:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator)
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (network(x) - x[:, :2].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_the_part_that_is_not_muon_is_adamw() -> None:
    networks = [make_network(), make_network()]
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    train(networks[0], torch.optim.AdamW(networks[0].parameters(), **settings), 20)
    group = {"params": list(networks[1].parameters()), "weight_decay": 0.1}
    train(networks[1], Muon([group], lr=1e-2, betas=(0.9, 0.95)), 20)
    for mine, other in zip(networks[1].parameters(), networks[0].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_the_part_that_is_muon_is_that_of_torch() -> None:
    networks = [make_network()[2], make_network()[2]]
    gradients = torch.randn(10, 8, 8, generator=torch.Generator().manual_seed(2))
    theirs = torch.optim.Muon([networks[0].weight], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    group = {"params": [networks[1].weight], "weight_decay": 0.1, "muon": True}
    mine = Muon([group], lr=0.02, betas=(0.9, 0.95))
    for gradient in gradients:
        networks[0].weight.grad, networks[1].weight.grad = gradient.clone(), gradient.clone()
        theirs.step()
        mine.step()
    # torch iterates in bfloat16
    torch.testing.assert_close(networks[1].weight, networks[0].weight, rtol=0.05, atol=0.01)


def test_a_kernel_counts_as_a_matrix() -> None:
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(4, 8, 3, bias=False), nn.Linear(36, 8, bias=False)
    linear.weight.data.copy_(conv.weight.data.flatten(1))
    optimizer = Muon([{"params": [conv.weight, linear.weight], "lr": 0.1, "muon": True}])
    for _ in range(3):
        conv.weight.grad = torch.randn(8, 4, 3, 3)
        linear.weight.grad = conv.weight.grad.flatten(1).clone()
        optimizer.step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight)


def test_it_is_built_for_the_named_matrices_and_resumes() -> None:
    def build(network: nn.Sequential) -> dict:
        config = OptimConfig(lr=1e-2, muon_lr=0.05, warmup_steps=1)
        return build_optimizer(network.named_parameters(), config, 100, lambda name: name.startswith("2."))

    network = make_network()
    built = build(network)
    optimizer = built["optimizer"]
    assert isinstance(optimizer, Muon)
    muon = [param for group in optimizer.param_groups if group["muon"] for param in group["params"]]
    assert [param is network[2].weight for param in muon] == [True]
    before = train(network, optimizer, 30)
    state = copy.deepcopy(optimizer.state_dict())
    twin = copy.deepcopy(network)
    other = build(twin)["optimizer"]
    other.load_state_dict(state)
    assert train(network, optimizer, 10) == train(twin, other, 10) < before


def test_a_matrix_in_parts_is_decayed() -> None:
    """Under ZeRO-3 a rank sees an empty vector in the place of a matrix."""
    matrix, vector = (nn.Parameter(torch.empty(0)) for _ in range(2))
    matrix.ds_shape, vector.ds_shape = torch.Size([4, 4]), torch.Size([4])  # type: ignore[attr-defined]
    groups = param_groups([("matrix", matrix), ("vector", vector)], OptimConfig(weight_decay=0.3))
    assert [(group["params"], group["weight_decay"]) for group in groups] == [([matrix], 0.3), ([vector], 0.0)]
