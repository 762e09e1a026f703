"""The network `dit`: a transformer on patches, trained and used like the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undiffuse.base.errors import UserError
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.objectives.denoising import denoising_batch, denoising_loss
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.nets import NETWORKS, build_network
from undiffuse.training.presets import make_config

SMALL = "dit:depth=2,width=32,heads=2,stem=16"


def moved(network: torch.nn.Module) -> torch.nn.Module:
    """The network with weights moved from zero, so that every part has a say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 10), (1, 4, 4)])
@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_it_serves_images_of_any_size(shape: tuple[int, int, int], patch: int) -> None:
    network = build_network(f"{SMALL},patch={patch}", shape, 0)
    out = network(torch.randn(2, *shape), torch.zeros(2), None)
    assert out.shape == (2, *shape)
    assert not out.any()  # it starts at zero


def test_it_sees_noise_level_condition_and_prototype() -> None:
    network = moved(build_network(SMALL, (1, 8, 8), 3))
    x, level, condition = torch.randn(1, 1, 8, 8), torch.zeros(1), torch.tensor([1])

    def out() -> Tensor:
        return network(x, level, condition).detach()

    first = out()
    assert torch.equal(out(), first)
    assert not torch.equal(network(x, level + 1, condition), first)
    assert not torch.equal(network(x, level, torch.tensor([3])), first)  # unconditional
    network.prototypes[1] += 1
    assert not torch.equal(out(), first)


def batch() -> tuple[Denoiser, torch.nn.Module, object]:
    network = build_network(SMALL, (1, 8, 8), 0)
    denoiser = Denoiser(network, "cosine", "v", (1, 8, 8))
    g = torch.Generator().manual_seed(0)
    x_0, noise = torch.rand(8, 1, 8, 8, generator=g) * 2 - 1, torch.randn(8, 1, 8, 8, generator=g)
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    return denoiser, network, denoising_batch(denoiser, WEIGHTINGS["snr-plus-1"], x_0, noise, t)


def test_every_parameter_learns() -> None:
    """Those that the zeros of the start hide learn from the second step on."""
    _, network, own = batch()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        denoising_loss(network, own).mean().backward()
        optimizer.step()
    still = [name for name, p in network.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_it_overfits_eight_images() -> None:
    _, network, own = batch()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = denoising_loss(network, own).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("heads=5", "network 'dit': heads must divide width, and 5 does not divide 192"),
        ("depth=0", "network 'dit': depth must be from 1 to 4096, not 0"),
        ("mlp=0", "network 'dit': mlp must be above 0"),
        ("dropout=1", "network 'dit': dropout must be at least 0 and below 1"),
        ("channels=8", "network 'dit' has no parameter 'channels'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_config(net=f"dit:{options}")


def test_every_option_has_a_reason() -> None:
    network = NETWORKS.function("dit")
    assert set(network.reasons) == set(NETWORKS.defaults("dit"))
