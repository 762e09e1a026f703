"""The network `categorical` against Bayes' rule, written again in float64."""

from __future__ import annotations

import pytest
import torch

from undiffuse.base import engine
from undiffuse.base.errors import UserError
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.nets.categorical import Categorical
from undiffuse.training.experiment import DataFacts, build_configured
from undiffuse.training.presets import make_config

LEVELS = torch.linspace(-1, 1, 256, dtype=torch.float64)


def network(shape: tuple[int, int, int], conditions: int = 0) -> Categorical:
    torch.manual_seed(0)
    made = Categorical(
        shape=shape,
        conditions=conditions,
        channels=(8, 16),
        blocks=(1, 1),
        attention=(False, False),
        heads=1,
    )
    return made.eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_denoised_image_is_the_posterior_mean_under_the_prior_that_the_network_gives(
    precision: str,
) -> None:
    """The features say nothing, as their weights are zero, and the bias is a prior.

    Each of a patch's four values has a prior of its own."""
    if precision == "bf16" and not engine.has_bf16():
        pytest.skip("no bfloat16 here")
    shape = (1, 7, 9)
    net = network(shape)
    log_prior = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).bfloat16() * 2
    with torch.no_grad():
        net.out.bias.copy_(log_prior.flatten())
    for log_snr in (-12.0, -3.0, 0.0, 5.0, 9.0, 11.0, 14.0):
        level = torch.tensor(log_snr, dtype=torch.float64)
        alpha, sigma = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
        generator = torch.Generator().manual_seed(2)
        x_0 = LEVELS[torch.randint(256, (3, *shape), generator=generator)]
        noise = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
        x_t = (alpha * x_0 + sigma * noise).float()
        with torch.no_grad(), engine.arithmetic(precision):
            denoised = net(x_t, torch.full((3,), log_snr))
        assert denoised.shape == x_t.shape
        for row in range(7):
            for column in range(9):
                of_patch = log_prior[2 * (row % 2) + column % 2].double()
                seen = x_t[:, 0, row, column].double()[:, None]
                p = (of_patch - (seen - alpha * LEVELS) ** 2 / (2 * sigma**2)).softmax(dim=1)
                found = denoised[:, 0, row, column].double()
                assert found == pytest.approx((p * LEVELS).sum(dim=1), abs=2e-4), log_snr


def test_with_little_noise_it_rounds_to_an_8_bit_value() -> None:
    x_0 = LEVELS.float().repeat(3, 1, 1).view(1, 3, 16, 16)
    noisy = torch.tensor(14.0).sigmoid().sqrt() * (
        x_0 + 0.3 / 127.5 * torch.sign(torch.randn(x_0.shape))
    )
    with torch.no_grad():
        denoised = network((3, 16, 16))(noisy, torch.full((1,), 14.0))
    assert (denoised - x_0).abs().max() < 0.02 / 127.5


@pytest.mark.parametrize("log_snr", [-12.0, 0.0, 8.0, 14.0])
def test_it_is_given_what_each_value_says_of_itself(
    log_snr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of the levels' embedding under Bayes' rule for a value alone, beside x_t."""
    net = network((3, 5, 6))
    log_marginal = torch.randn(256, generator=torch.Generator().manual_seed(1)) / 8
    with torch.no_grad():
        net.log_marginal.copy_(log_marginal)
    x_t = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(2))
    seen = []
    features = net.features

    def watched(patches: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(patches)
        return features(patches, *others)

    monkeypatch.setattr(net, "features", watched)
    with torch.no_grad():
        net(x_t, torch.full((2,), log_snr))
    level = torch.tensor(log_snr, dtype=torch.float64)
    alpha, sigma = level.sigmoid().sqrt(), (-level).sigmoid().sqrt()
    p = (
        16 * log_marginal.double()
        - (x_t.double()[..., None] - alpha * LEVELS) ** 2 / (2 * sigma**2)
    ).softmax(dim=-1)
    angle = LEVELS[:, None] * torch.pi / 2 * 2.0 ** torch.arange(8)
    expected = p @ torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, C, H, W, 16)
    found = seen[0][:, 12:].unflatten(
        1, (3, 2, 2, 16)
    )  # the colours, the pixels of a patch, the embedding
    for row, column in ((0, 0), (0, 5), (3, 2), (4, 1)):
        in_patch = found[:, :, row % 2, column % 2, :, row // 2, column // 2]
        assert torch.allclose(in_patch.double(), expected[:, :, row, column], atol=1e-3)
    assert torch.equal(seen[0][:, :12], net.patches(x_t))


def test_it_sees_the_prototype_of_its_condition_beside_these() -> None:
    """After x_t and what each value says of itself. Each image of a batch has its own prototype.

    With another prototype the denoised image is another."""
    net = network((3, 5, 6), conditions=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        net.prototypes.copy_(torch.randn(net.prototypes.shape, generator=generator))
        for parameter in (net.out.weight, net.out.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x_t, level, condition = (
        torch.randn(3, 3, 5, 6, generator=generator),
        torch.zeros(3),
        torch.tensor([2, 0, 4]),
    )
    seen: list[torch.Tensor] = []
    net.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        before = net(x_t, level, condition)
        net.prototypes[0] = 0
        after = net(x_t, level, condition)
    assert torch.equal(seen[0][:, :12], net.patches(x_t))
    assert torch.equal(seen[0][::2, -12:], net.patches(net.prototypes[[2, 4]]))
    assert seen[0].shape[1] == 12 + 12 * 16 + 12
    assert torch.equal(before[::2], after[::2])
    assert (before[1] - after[1]).abs().max() > 0.01


def test_its_derivative_goes_through_what_each_value_says_of_itself() -> None:
    """The likelihood of the probability flow needs all of it: by autograd as by differences."""
    net = network((1, 8, 8))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    x_t, along = (torch.randn(1, 1, 8, 8, generator=generator) for _ in range(2))
    level = torch.zeros(1)
    slope = torch.autograd.functional.jvp(lambda x: net(x, level), x_t, along)[1]
    step = 5e-3 * along
    with torch.no_grad():
        difference = (net(x_t + step, level) - net(x_t - step, level)) / 1e-2
    assert (slope - difference).norm() < 0.02 * difference.norm()


def test_it_goes_with_the_prediction_x0_only() -> None:
    facts = DataFacts("mnist", (1, 28, 28), (), 10, 10, "")
    with pytest.raises(UserError, match="predict must be 'x0' for network 'categorical'"):
        build_configured(make_config(net="categorical", predict="v"), facts, Conditioning())
    build_configured(make_config("likelihood"), facts, Conditioning())
