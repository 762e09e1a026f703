"""The samplers once more, from their papers, for Gaussian pixels: affine maps of their noises.

The units are those in which x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps. Integrals are
taken numerically here, where the package has closed forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

# Two independent pixels: mean and standard deviation of the data.
M, S = np.array([0.3, -0.2]), np.array([0.4, 0.8])

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(60)

Maps = np.ndarray  # (sources, 2): the offset, and the response to each noise


def lambda_(bar: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(np.sqrt(bar)) - np.log(np.sqrt(1 - bar)))


def integrated(
    nodes: Sequence[float], values: Sequence[Maps], a: float, b: float, weight: Callable[..., Maps]
) -> Maps:
    """The integral from a to b of weight(u) P(u). P is Lagrange's polynomial of the values."""
    u = (a + b) / 2 + (b - a) / 2 * POINTS
    total = 0
    for j, value in enumerate(values):
        others = [node for k, node in enumerate(nodes) if k != j]
        basis = np.prod([(u - node) / (nodes[j] - node) for node in others], axis=0)
        total = total + (b - a) / 2 * (WEIGHTS * weight(u) * basis).sum() * value
    return total


class Way:
    """A way from pure noise to the image. history: (alpha_bar, x, x_0, eps) of earlier steps."""

    def __init__(self, bars: Sequence[float], at: Callable[[float], float], times: Sequence[float]):
        self.bars, self.at, self.times = bars, at, times
        self.one, self.x, *self.noises = np.repeat(np.eye(len(bars) + 1)[:, :, None], 2, axis=2)
        self.history: list[tuple[float, Maps, Maps, Maps]] = []

    def denoised(self, x: Maps, bar: float) -> Maps:
        gain = np.sqrt(bar) * S**2 / (bar * S**2 + 1 - bar)
        return self.one * M + gain * (x - np.sqrt(bar) * self.one * M)

    def eps(self, x: Maps, bar: float) -> Maps:
        return (x - np.sqrt(bar) * self.denoised(x, bar)) / np.sqrt(1 - bar)

    def ddim_step(
        self, x: Maps, t: float, s: float, eta: float = 0, noise: Maps | float = 0
    ) -> Maps:
        std = eta * np.sqrt((1 - s) / (1 - t)) * np.sqrt(1 - t / s)
        direction = np.sqrt(max(1 - s - std**2, 0)) * self.eps(x, t)
        return np.sqrt(s) * self.denoised(x, t) + direction + std * noise

    def heun_step(self, x: Maps, t: float, s: float) -> Maps:
        """On the line y = (1 - tau) x_0 + tau eps."""
        scale_t, scale_s = (np.sqrt(bar) + np.sqrt(1 - bar) for bar in (t, s))
        h = np.sqrt(1 - s) / scale_s - np.sqrt(1 - t) / scale_t
        change = self.eps(x, t) - self.denoised(x, t)
        if s < 1:
            euler = scale_s * (x / scale_t + h * change)
            change = (change + self.eps(euler, s) - self.denoised(euler, s)) / 2
        return scale_s * (x / scale_t + h * change)

    def run(self, name: str, **options: float) -> Maps:
        method = getattr(self, name.replace("-", "_"), None)
        assert method, f"the textbook has no formula of {name}: write it here, from its paper"
        for index, (t, s) in enumerate(pairwise(self.bars)):
            self.index, x_t = index, self.x
            self.start = (t, x_t, self.denoised(x_t, t), self.eps(x_t, t))
            noise = self.noises[index] if index < len(self.noises) else np.zeros_like(x_t)
            self.x = method(t, s, noise, **options)
            self.history.insert(0, self.start)
        return self.x

    def known(self, order: int, s: float) -> list[tuple[float, Maps, Maps, Maps]]:
        """This step and earlier ones, without pure noise; at the last step this one only."""
        finite = [past for past in self.history if past[0] > 0]
        return [self.start, *finite][: order if s < 1 else 1]

    # --- the handout's, DDIM, Heun, and DPM-Solver++ 2M ---

    def posterior(self, t: float, s: float) -> tuple[Maps, float]:
        """(4): the mean and the variance."""
        alpha = t / s
        weighted = np.sqrt(alpha) * (1 - s) * self.x + np.sqrt(s) * (1 - alpha) * self.start[2]
        return weighted / (1 - t), (1 - alpha) * (1 - s) / (1 - t)

    def posterior_mean(self, t: float, s: float, noise: Maps) -> Maps:
        """(7)"""
        return self.posterior(t, s)[0]

    def ddpm(self, t: float, s: float, noise: Maps) -> Maps:
        """(8)"""
        mean, variance = self.posterior(t, s)
        return mean + np.sqrt(variance) * noise

    def ddpm_printed(self, t: float, s: float, noise: Maps) -> Maps:
        mean, variance = self.posterior(t, s)
        return mean + variance * noise

    def ddim(self, t: float, s: float, noise: Maps, eta: float = 0) -> Maps:
        """(12) and (16) of Song et al. 2021."""
        return self.ddim_step(self.x, t, s, eta, noise)

    def euler(self, t: float, s: float, noise: Maps) -> Maps:
        """On the line y = (1 - tau) x_0 + tau eps."""
        scale_t, scale_s = (np.sqrt(bar) + np.sqrt(1 - bar) for bar in (t, s))
        h = np.sqrt(1 - s) / scale_s - np.sqrt(1 - t) / scale_t
        return scale_s * (self.x / scale_t + h * (self.start[3] - self.start[2]))

    def heun(self, t: float, s: float, noise: Maps) -> Maps:
        return self.heun_step(self.x, t, s)

    def second_order(self, t: float, s: float) -> Maps:
        """x_0_hat of algorithm 2 of Lu et al. 2022."""
        x_0 = self.start[2]
        if not self.history or s == 1:
            return x_0
        before, _, former, _ = self.history[0]
        r = (lambda_(t) - lambda_(before)) / (lambda_(s) - lambda_(t))
        return (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * former

    def dpmpp_2m(self, t: float, s: float, noise: Maps) -> Maps:
        h = lambda_(s) - lambda_(t)
        linear = np.sqrt((1 - s) / (1 - t)) * self.x
        return linear - np.sqrt(s) * (np.exp(-h) - 1) * self.second_order(t, s)

    def dpmpp_2m_sde(self, t: float, s: float, noise: Maps) -> Maps:
        """Appendix E of Lu et al. 2022."""
        h = lambda_(s) - lambda_(t)
        x = np.exp(-h) * np.sqrt((1 - s) / (1 - t)) * self.x
        x = x + np.sqrt(s) * (1 - np.exp(-2 * h)) * self.second_order(t, s)
        return x + np.sqrt((1 - s) * (1 - np.exp(-2 * h))) * noise

    # --- multistep ---

    def exp_ab(self, t: float, s: float, noise: Maps, order: int = 3) -> Maps:
        points = self.known(order, s)
        if len(points) == 1 or t == 0:
            return self.ddim_step(self.x, t, s)
        return self.by_data(self.start, points, s)

    def by_data(self, start: tuple, points: Sequence[tuple], s: float) -> Maps:
        t, x = start[0], start[1]
        lambdas, values = [lambda_(p[0]) for p in points], [p[2] for p in points]
        whole = integrated(lambdas, values, lambda_(t), lambda_(s), np.exp)
        return np.sqrt((1 - s) / (1 - t)) * x + np.sqrt(1 - s) * whole

    def dpmpp_3m(self, t: float, s: float, noise: Maps, sde: bool = False) -> Maps:
        h = lambda_(s) - lambda_(t)
        past = self.history
        x_0 = self.start[2]
        power = 2 if sde else 1
        scale = np.sqrt((1 - s) / (1 - t)) * (np.exp(-h) if sde else 1)
        phi = 1 - np.exp(-power * h)
        x = scale * self.x + np.sqrt(s) * phi * x_0
        if s < 1 and past and past[0][0] > 0:
            r_0 = (lambda_(t) - lambda_(past[0][0])) / h
            d_near = (x_0 - past[0][2]) / r_0
            if len(past) == 1:
                x = x + np.sqrt(s) * phi / 2 * d_near
            else:
                r_1 = (lambda_(past[0][0]) - lambda_(past[1][0])) / h
                change = d_near - (past[0][2] - past[1][2]) / r_1
                d_1 = d_near + r_0 / (r_0 + r_1) * change
                d_2 = change / (r_0 + r_1)
                x = x + np.sqrt(s) * ((-phi) / (power * h) + 1) * d_1
                second = (-phi + power * h) / (power * h) ** 2 - 0.5
                x = x - np.sqrt(s) * second * d_2
        return x + (np.sqrt((1 - s) * (1 - np.exp(-2 * h))) * noise if sde else 0)

    def dpmpp_3m_sde(self, t: float, s: float, noise: Maps) -> Maps:
        return self.dpmpp_3m(t, s, noise, sde=True)

    def unipc(self, t: float, s: float, noise: Maps, order: int = 3) -> Maps:
        """Algorithms 1 and 2 of Zhao et al. 2023, with their matrices R and vectors b."""
        past = [p for p in self.history if p[0] > 0][:order]
        x_0 = self.start[2]
        if past:
            base, h = past[0], lambda_(t) - lambda_(past[0][0])
            r = [(lambda_(p[0]) - lambda_(base[0])) / h for p in past[1:]] + [1.0]
            values = [p[2] for p in past[1:]] + [x_0]
            x = self.uni(base, r, values, h, t, exact=len(past) > 1)
            self.start = (t, x, x_0, self.start[3])
        if s == 1:
            return x_0
        points = self.known(order, s)
        h = lambda_(s) - lambda_(t)
        if len(points) == 1 or t == 0:
            x = self.start[1]
            eps = (x - np.sqrt(t) * x_0) / np.sqrt(1 - t)
            return np.sqrt(s) * x_0 + np.sqrt(1 - s) * eps
        r = [(lambda_(p[0]) - lambda_(t)) / h for p in points[1:]]
        values = [p[2] for p in points[1:]]
        return self.uni(self.start, r, values, h, s, exact=len(points) > 2)

    @staticmethod
    def uni(
        start: tuple, r: Sequence[float], values: Sequence[Maps], h: float, s: float, exact: bool
    ) -> Maps:
        t, x, base, _ = start
        big = np.expm1(-h)  # B_2
        if exact:
            rows, b, phi, factorial = [], [], np.expm1(-h) / -h - 1, 1
            for i in range(1, len(r) + 1):
                rows.append(np.power(r, i - 1))
                b.append(phi * factorial / big)
                factorial *= i + 1
                phi = phi / -h - 1 / factorial
            rhos = np.linalg.solve(np.array(rows), np.array(b))
        else:
            rhos = [0.5]
        differences = sum(
            rho * (value - base) / ratio for rho, value, ratio in zip(rhos, values, r, strict=True)
        )
        linear = np.sqrt((1 - s) / (1 - t)) * x - np.sqrt(s) * np.expm1(-h) * base
        return linear - np.sqrt(s) * big * differences

    def deis(self, t: float, s: float, noise: Maps, order: int = 3) -> Maps:
        points = self.known(order, s)
        if len(points) == 1 or t == 0:
            return self.ddim_step(self.x, t, s)
        lambdas, values = [lambda_(p[0]) for p in points], [p[3] for p in points]
        whole = integrated(lambdas, values, lambda_(t), lambda_(s), lambda u: np.exp(-u))
        return np.sqrt(s / t) * self.x - np.sqrt(s) * whole

    def lms(self, t: float, s: float, noise: Maps, order: int = 4) -> Maps:
        points = self.known(order, s)
        if len(points) == 1 or t == 0:
            return self.ddim_step(self.x, t, s)
        rho = [np.sqrt((1 - p[0]) / p[0]) for p in points]
        whole = integrated(rho, [p[3] for p in points], rho[0], np.sqrt((1 - s) / s), np.ones_like)
        return np.sqrt(s / t) * self.x + np.sqrt(s) * whole

    def pndm(self, t: float, s: float, noise: Maps) -> Maps:
        if s == 1 or t < 1e-12:
            return self.ddim_step(self.x, t, s)
        e = [self.start[3], *(p[3] for p in self.history if p[0] >= 1e-12)]
        if len(e) == 1:
            eps = (e[0] + self.eps(self.ddim_step(self.x, t, s), s)) / 2
        elif len(e) == 2:
            eps = (3 * e[0] - e[1]) / 2
        elif len(e) == 3:
            eps = (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12
        else:
            eps = (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24
        return np.sqrt(s) * (self.x - np.sqrt(1 - t) * eps) / np.sqrt(t) + np.sqrt(1 - s) * eps

    # --- stochastic ---

    def euler_ancestral(self, t: float, s: float, noise: Maps) -> Maps:
        """sample_euler_ancestral of k-diffusion, for x / sqrt(alpha_bar) and its sigma."""
        if t == 0 or s == 1:  # sigma is infinite; or the image
            return self.ddim_step(self.x, t, s, 1.0 if s < 1 else 0.0, noise)
        sigma, to = np.sqrt((1 - t) / t), np.sqrt((1 - s) / s)
        up = min(to, np.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
        down = np.sqrt(to**2 - up**2)
        x = self.x / np.sqrt(t)
        x = x + (x - self.denoised(self.x, t)) / sigma * (down - sigma)
        return np.sqrt(s) * (x + up * noise)

    def heun_churn(self, t: float, s: float, noise: Maps) -> Maps:
        """Algorithm 2 of Karras et al. 2022 with S_churn = 10, S_tmin = 0.05, S_tmax = 50."""
        rho = np.sqrt((1 - t) / t) if t > 0 else np.inf
        steps = len(self.bars) - 1
        gamma = min(10 / steps, np.sqrt(2) - 1) if 0.05 <= rho <= 50 else 0
        if not gamma:
            return self.heun_step(self.x, t, s)
        raised = rho * (1 + gamma)
        x = self.x / np.sqrt(t) + np.sqrt(raised**2 - rho**2) * noise
        bar = 1 / (1 + raised**2)
        return self.heun_step(np.sqrt(bar) * x, bar, s)

    def restart(self, t: float, s: float, noise: Maps) -> Maps:
        x = self.heun_step(self.x, t, s)
        begin, end = self.times[self.index], self.times[self.index + 1]
        if not end <= 0.3 < begin or s == 1:
            return x
        bars = [self.at(0.5 + (end - 0.5) * i / 3) for i in range(4)]
        x = np.sqrt(bars[0] / s) * x + np.sqrt(1 - bars[0] / s) * noise
        for one, other in pairwise(bars):
            x = self.heun_step(x, one, other)
        return x

    def consistency(self, t: float, s: float, noise: Maps) -> Maps:
        return np.sqrt(s) * self.denoised(self.x, t) + np.sqrt(1 - s) * noise
