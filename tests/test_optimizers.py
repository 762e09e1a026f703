"""The optimisers: Muon against the singular value decomposition, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.training.muon import matrix_shape, orthogonal
from undiffuse.training.optimizers import OPTIMIZERS
from undiffuse.training.presets import make_config


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 20, 100), (1, 100, 20)])
@pytest.mark.parametrize("bf16", [False, True])
def test_orthogonal_keeps_the_directions_and_evens_the_sizes(
    shape: tuple[int, int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, or in float32 where the processor has no bfloat16."""
    monkeypatch.setattr(engine, "has_bf16", lambda: bf16)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices, iterations=5)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    # In the matrices' own singular directions the result is almost diagonal, with entries near one.
    inside = u.mT @ found @ v.mT
    diagonal = inside.diagonal(dim1=1, dim2=2)
    large = s > 0.05 * s.amax(dim=1, keepdim=True)
    assert (diagonal[large] > 0.6).all()
    assert (diagonal < 1.3).all()
    assert (inside - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_few_iterations_even_all_but_the_smallest_sizes() -> None:
    """After three: what has at least a fiftieth of the matrix's norm."""
    matrices = torch.randn(4, 128, 1152, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    s = s * torch.logspace(0, -2, 128)  # sizes over two orders of magnitude
    found = torch.linalg.svdvals(orthogonal(u @ torch.diag_embed(s) @ v))
    share = s / s.norm(dim=1, keepdim=True)
    assert (found[share > 0.02] > 0.6).all()
    assert (found < 1.3).all()
    assert (found[share < 0.005] < 0.4).all()


MUONS = ("2.weight", "3.weight", "5.weight")  # two of one shape


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Flatten(),
        nn.Linear(32 * 16, 20),
    )


def test_muon_steps_are_momentum_made_orthogonal_and_scaled() -> None:
    """By hand, for two steps.

    The later convolutions and the linear layer are Muon's. The first convolution, of 9 columns, and
    the biases are AdamW's."""
    config = make_config(lr=0.01, weight_decay=0.1, optimizer="muon:momentum=0.9")
    network, twin = small_network(), small_network()
    optimizer = OPTIMIZERS[config.optimizer](network, config)
    adamw = torch.optim.AdamW(
        twin.parameters(), lr=0.01, betas=(config.beta_1, config.beta_2), weight_decay=0.1
    )
    expected = {name: p.detach().clone() for name, p in network.named_parameters()}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(2):
        for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
            gradient = torch.randn(
                p.shape, generator=torch.Generator().manual_seed(step + 10 * int(name[0]))
            )
            p.grad, q.grad = gradient.clone(), gradient.clone()
            if name in MUONS:
                buffers[name] = 0.9 * buffers[name] + 0.1 * gradient
                direction = 0.1 * gradient + 0.9 * buffers[name]
                rows, columns = matrix_shape(p)
                update = orthogonal(direction.reshape(1, rows, columns))[0].view(p.shape)
                expected[name] = (
                    expected[name] * (1 - 0.01 * 0.1)
                    - 0.01 * 0.2 * max(rows, columns) ** 0.5 * update
                )
        optimizer.step()
        adamw.step()
    for (name, p), q in zip(network.named_parameters(), twin.parameters(), strict=True):
        wanted = expected[name] if name in MUONS else q
        # An update's entries are about 2e-3. In bfloat16 they depend a little on how the matrices
        # are stacked.
        torch.testing.assert_close(p, wanted, rtol=0, atol=4e-4 if name in MUONS else 1e-6)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_fits_a_line(name: str) -> None:
    network = small_network()
    config: Any = make_config(optimizer=name, lr=3e-3)
    optimizer = OPTIMIZERS[name](network, config)
    g = torch.Generator().manual_seed(0)
    x, mixing = torch.randn(256, 1, 4, 4, generator=g), torch.randn(16, 20, generator=g)
    losses = []
    for _ in range(150):
        loss = (network(x) - x.flatten(1) @ mixing).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_a_zero_gradient_moves_nothing_by_muon() -> None:
    network = small_network()
    optimizer = OPTIMIZERS["muon"](network, make_config(weight_decay=0.0))
    before = network[2].weight.detach().clone()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(network[2].weight, before)


def test_impossible_momentum_is_refused() -> None:
    with pytest.raises(UserError, match="momentum"):
        OPTIMIZERS["muon:momentum=1"](small_network(), make_config())
