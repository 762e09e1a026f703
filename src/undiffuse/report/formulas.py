"""What a report says of schedules, times, weightings, predictions and samplers, with formulas.

What is not listed here, such as a function of a user's own, is explained by its docstring.
"""

from __future__ import annotations

FORMULAS = {
    ("schedule", "cosine"): (
        "$macron(alpha)(t) = f(t) slash f(0)$, where $f(t)$ is the square of the cosine of "
        "$(t + s) slash (1 + s)$ quarter turns, and $s = 0.008$ unless another $s$ is given "
        "(Nichol & Dhariwal 2021)."
    ),
    ("schedule", "linear"): (
        "$beta_t = 1 - alpha_t$ rises linearly from 0.0001 to 0.02 in 1,000 steps (Ho et al. "
        "2020). It is the handout's baseline."
    ),
    ("time distribution", "uniform"): "$t$ is uniform between 0 and 1.",
    ("time distribution", "logit-normal"): (
        "$log (t slash (1 - t))$ is normal (Esser et al. 2024), so middle times are frequent and "
        "both ends are rare."
    ),
    ("weighting", "uniform"): "$w = 1$, as in the handout.",
    (
        "weighting",
        "snr",
    ): '$w = "SNR"$, which is the plain squared error of the noise (Ho et al. 2020).',
    ("weighting", "snr-plus-1"): (
        '$w = "SNR" + 1$, which is the plain squared error of $v$, defined below (Salimans & Ho '
        "2022)."
    ),
    ("prediction", "x0"): "$F$ is the image, as in the handout.",
    ("prediction", "eps"): "$F$ is the noise $epsilon$ (Ho et al. 2020).",
    ("prediction", "v"): (
        "$F$ is $v = (alpha epsilon - sigma x_0) slash sqrt(alpha^2 + sigma^2)$ (Salimans & Ho "
        "2022). With much noise that is nearly the image, with its sign turned, and with little "
        "noise nearly the noise. So it is never a small difference of large numbers."
    ),
    ("sampler", "dpmpp-2m-sde"): (
        "It is the stochastic DPM-Solver++ 2M (Lu et al. 2022, appendix E): (8) with the "
        "extrapolated denoised image in place of $hat(x)_theta$."
    ),
}
"""(kind of table, name) -> marked-up text."""
