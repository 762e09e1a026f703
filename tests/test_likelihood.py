"""The likelihoods against closed forms on exact Gaussian denoisers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.base.pixels import to_float, to_uint8
from undiffuse.diffusion import likelihood
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.likelihood import (
    BIN,
    decoder_bits,
    ode_bits,
    ode_log_density,
    prior_bits,
    variational_bound,
)
from undiffuse.diffusion.schedule import SCHEDULES, chain

MEAN, STD = 0.1, 0.3
SHAPE = (1, 4, 4)


def exact_denoiser(schedule: str, std: float = STD) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, std^2) in each dimension.

    The network predicts x_0 from c_in x_t, of unit-norm (alpha, sigma), and from the log-SNR."""

    def network(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        snr = log_snr.double().exp()
        alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        gain, alpha = gain[:, None, None, None], alpha[:, None, None, None]
        return (MEAN + gain * (x.double() - alpha * MEAN)).to(x.dtype)

    return Denoiser(network, schedule, "x0", SHAPE)


def gaussian_images(n: int, std: float = STD) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return to_uint8(MEAN + std * torch.randn(n, *SHAPE, generator=g))


def expected_diffusion(x_0: Tensor, schedule: str, steps: int) -> Tensor:
    """The sum over i = 2..T of (SNR_{i-1} - SNR_i) E|x_0 - x_0_hat|^2 / 2, for these x_0.

    In bits per dimension (N,)."""
    alpha_bar = chain(SCHEDULES[schedule], steps).alpha_bar
    snr = alpha_bar / (1 - alpha_bar)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    gain = a * STD**2 / (a**2 * STD**2 + s**2)  # x_0_hat = MEAN + gain (x_t - a MEAN)
    offset = (gain * a - 1)[:, None] * (x_0.double().flatten(1) - MEAN)[:, None, :]  # (N, T, D)
    error = (offset.square() + (gain * s).square()[:, None]).mean(dim=2)
    return ((snr[:-1] - snr[1:]) * error[:, 1:] / 2).sum(dim=1) / math.log(2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid", "flow", "log-linear"])
def test_the_diffusion_term_is_the_sum_over_the_chain(schedule: str) -> None:
    images = gaussian_images(200)
    for steps in (10, 1000):
        bound = variational_bound(
            exact_denoiser(schedule), images, steps=steps, levels=64, clip=False
        )
        expected = expected_diffusion(to_float(images), schedule, steps)
        difference = bound.diffusion - expected
        error = difference.std() / math.sqrt(len(images))
        assert abs(difference.mean()) < 4 * error + 1e-4 * expected.mean(), steps
        assert error < 0.02 * expected.mean(), steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "log-linear"])
def test_the_continuous_bound_of_the_exact_denoiser_is_the_entropy(schedule: str) -> None:
    """prior + diffusion + the decoder's part is tight for the exact denoiser.

    It is -log2 of the data's own density, but for the last step, where a discretised decoder
    replaces the posterior."""
    images = gaussian_images(4000)
    bound = variational_bound(
        exact_denoiser(schedule), images, steps=1000, continuous=True, levels=64, clip=False
    )
    x_0 = to_float(images).double()
    density = -0.5 * ((x_0 - MEAN) / STD).square() - math.log(STD * math.sqrt(2 * math.pi))
    own = -density.mean(dim=(1, 2, 3)) / math.log(2)
    # The bits that x_1 leaves: the exact decoder p(x_0 | x_1) is normal.
    begin = exact_denoiser(schedule).noise_level(torch.tensor(1e-3))
    ratio = (begin.sigma / begin.alpha).item()
    posterior_std = ratio * STD / math.sqrt(STD**2 + ratio**2)
    left = (0.5 + math.log(posterior_std * math.sqrt(2 * math.pi))) / math.log(2)
    found = (bound.prior + bound.diffusion).mean().item() + left
    assert found == pytest.approx(own.mean().item(), abs=0.02)


def test_more_steps_bring_the_chain_nearer_to_the_continuous_bound() -> None:
    """Between the same ends the sum is never below the integral."""
    images, gaps = gaussian_images(200), []
    for steps in (20, 100, 1000):
        of_chain, limit = (
            variational_bound(
                exact_denoiser("log-linear"),
                images,
                steps=steps,
                continuous=continuous,
                levels=64,
                clip=False,
            )
            for continuous in (False, True)
        )
        assert (of_chain.low, of_chain.high) == (limit.low, limit.high)
        gaps.append((of_chain.diffusion - limit.diffusion).mean().item())
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2]
    assert gaps[2] > -0.002


def test_levels_are_stratified() -> None:
    bound = variational_bound(exact_denoiser("cosine"), gaussian_images(30), levels=8, batch_size=7)
    place = (bound.levels - bound.low) / (bound.high - bound.low) * 8
    assert (place.floor() == torch.arange(8)).all()
    assert bound.levels.shape == (30, 8)


def test_the_prior_is_the_divergence_of_two_normals() -> None:
    """KL(N(alpha x_0, sigma^2) | N(0, alpha^2 + sigma^2)) by torch.distributions."""
    alpha, sigma = torch.tensor([0.3, 0.9]).double()
    x_0 = torch.tensor([[[[0.5, -1.0]]]]).double()
    q = torch.distributions.Normal(alpha * x_0, sigma)
    p = torch.distributions.Normal(torch.zeros(()).double(), (alpha**2 + sigma**2).sqrt())
    expected = torch.distributions.kl_divergence(q, p).mean() / math.log(2)
    assert prior_bits(x_0, alpha, sigma).item() == pytest.approx(expected.item())
    assert prior_bits(x_0, torch.tensor(0.0).double(), torch.tensor(1.0).double()).item() == 0


# --- The decoder ---


def all_levels() -> Tensor:
    return to_float(torch.arange(256, dtype=torch.uint8)).view(256, 1, 1, 1)


@pytest.mark.parametrize("std", [0.001, 0.01, 0.3, 3.0])
def test_the_decoder_is_a_distribution_over_8_bit_values(std: float) -> None:
    for mean in (-1.0, -0.3, 0.9999, 1.5):
        bits = decoder_bits(all_levels(), torch.tensor(mean), std)
        assert bits.isfinite().all(), mean
        assert (2.0**-bits).sum().item() == pytest.approx(1, abs=1e-6), mean


def test_far_from_the_mean_the_decoder_costs_bits_and_not_infinity() -> None:
    bits = decoder_bits(torch.full((1, 1, 1, 1), 1.0), torch.tensor(-1.0), 0.001)
    assert bits.item() == pytest.approx(0.5 * (2 / 0.001) ** 2 / math.log(2), rel=0.01)


@pytest.mark.parametrize(("log_snr", "cost"), [(9.2, 0.62), (13.3, 0.002)])
def test_what_the_end_of_the_chain_costs_a_black_pixel(log_snr: float, cost: float) -> None:
    """Trap 25."""
    black = torch.full((1, 1, 1, 1), -1.0)
    assert decoder_bits(black, black, math.exp(-log_snr / 2)).item() == pytest.approx(
        cost, rel=0.15
    )


# --- The probability-flow ODE ---


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "log-linear"])
def test_the_ode_has_the_density_of_the_exact_flow(schedule: str) -> None:
    """The flow carries N(MEAN, STD^2 + (sigma/alpha)^2) at the start to the prior at t = 1.

    Where that is not exactly the prior that sampling starts from, the density is off by as much."""
    denoiser = exact_denoiser(schedule)
    z = MEAN + STD * torch.randn(
        50, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    signs = (
        torch.randint(0, 2, z.shape, generator=torch.Generator().manual_seed(4)).double() * 2 - 1
    )
    level = 8.0
    found = ode_log_density(denoiser, z, None, signs, steps=48, level=level)
    spread = math.sqrt(STD**2 + math.exp(-level))
    expected = torch.distributions.Normal(MEAN, spread).log_prob(z).sum(dim=(1, 2, 3))
    tolerance = 1e-3 if schedule in ("cosine", "flow") else 0.02
    torch.testing.assert_close(found, expected, atol=16 * tolerance, rtol=tolerance)


def test_a_schedule_that_ends_early_is_read_at_its_end() -> None:
    images = gaussian_images(20)
    bits = ode_bits(exact_denoiser("log-linear:snr_max=10"), images, steps=16)
    assert bits.isfinite().all()
    same = ode_bits(exact_denoiser("cosine"), images, steps=32, level=10.0)
    assert bits.mean().item() == pytest.approx(same.mean().item(), abs=0.05)


def test_conditions_reach_their_images_through_the_batches() -> None:
    """A denoiser that knows each image by its condition alone pays almost nothing.

    With conditions in another order it pays much."""
    images = gaussian_images(10)
    known = to_float(images)

    def network(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return known[condition]

    denoiser = Denoiser(network, "cosine", "x0", SHAPE, Conditioning(tuple("abcdefghij")))
    classes = torch.arange(10)
    right, wrong = (
        variational_bound(denoiser, images, order, levels=4, batch_size=3)
        for order in (classes, classes.flip(0))
    )
    assert right.diffusion.max() < 1e-6
    assert (wrong.diffusion > 1).all()


def test_the_whole_bound_is_what_a_code_of_the_chains_precision_costs() -> None:
    """The exact denoiser of a continuous normal knows nothing of 8-bit values.

    The chain writes x_0 down to its last sigma/alpha, and all terms together are the bits of that.
    No term is replaced by a formula here."""
    images = gaussian_images(500)
    bound = variational_bound(exact_denoiser("log-linear"), images, steps=1000, levels=32)
    last = math.exp(-bound.high / 2)
    expected = math.log2(STD * math.sqrt(2 * math.pi * math.e)) - math.log2(
        last * math.sqrt(2 * math.pi * math.e)
    )
    error = bound.total.std().item() / math.sqrt(500)
    assert expected - 4 * error < bound.total.mean().item() < expected + 0.05 + 4 * error


def test_half_the_steps_change_the_ode_little_and_its_order_is_four() -> None:
    z = MEAN + STD * torch.randn(
        20, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    signs = torch.ones_like(z)
    figures = [
        ode_log_density(exact_denoiser("cosine"), z, None, signs, steps=k, level=8.0).mean().item()
        for k in (6, 12, 96)
    ]
    assert abs(figures[0] - figures[2]) > 8 * abs(figures[1] - figures[2])


def test_ode_bits_of_gaussian_images_are_their_entropy() -> None:
    images = gaussian_images(300)
    bits = ode_bits(exact_denoiser("cosine"), images, steps=32)
    entropy = math.log2(STD * math.sqrt(2 * math.pi * math.e)) - math.log2(
        BIN
    )  # of a normal cut into bins, where these are narrow
    assert bits.mean().item() == pytest.approx(
        entropy, abs=4 * bits.std().item() / math.sqrt(300) + 0.01
    )


def test_hutchinson_is_unbiased_on_a_network_that_mixes_pixels() -> None:
    """The exact divergence, by a probe for each dimension, against the mean over random signs."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=g, dtype=torch.float64) / 8

    def network(x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        return (x.flatten(1) @ mixing.to(x.dtype)).tanh().view_as(x)

    denoiser = Denoiser(network, "cosine", "x0", SHAPE)
    z = torch.zeros(400, *SHAPE, dtype=torch.float64) + 0.3
    signs = torch.randint(0, 2, z.shape, generator=g).double() * 2 - 1
    found = ode_log_density(denoiser, z, None, signs, steps=6, level=6.0)

    # A probe sqrt(D) e_k picks out the k-th diagonal entry, and the mean over k is the trace. The
    # change of log p is linear in it.
    basis = math.sqrt(16) * torch.eye(16, dtype=torch.float64).view(16, *SHAPE)
    exact = ode_log_density(denoiser, z[:16], None, basis, steps=6, level=6.0).mean()
    assert found.mean().item() == pytest.approx(exact.item(), abs=4 * found.std().item() / 20)
    assert found.std() > 0


# --- What is reported ---


@pytest.mark.parametrize("continuous", [False, True])
def test_the_curve_by_level_integrates_to_the_diffusion_term(continuous: bool) -> None:
    images = gaussian_images(200)
    bound = variational_bound(
        exact_denoiser("cosine"), images, continuous=continuous, levels=32, clip=False
    )
    curve = likelihood.loss_by_level(bound, bins=16)
    width = (bound.high - bound.low) / 16
    assert sum(bits for _, bits, _ in curve) * width == pytest.approx(
        bound.diffusion.mean().item(), rel=1e-6
    )
    assert len(curve) == 16


def test_clipping_lowers_the_bound_of_a_network_that_goes_too_far() -> None:
    wild = Denoiser(lambda x, log_snr, condition: 3 * torch.sign(x), "cosine", "x0", SHAPE)
    images = torch.full((20, *SHAPE), 255, dtype=torch.uint8)
    clipped, raw = (
        variational_bound(wild, images, steps=50, levels=8, clip=c).total.mean()
        for c in (True, False)
    )
    assert clipped < raw
