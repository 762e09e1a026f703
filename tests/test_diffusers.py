"""Our samplers against diffusers' schedulers, step by step, and our UNet2D in diffusers' pipeline.

Their step k is our time (k + 1) / 1000 of the schedule `linear`. Their last step ends at our t = 0.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import close, covering, toy
from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion import sampling
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.sampling import Sampling, trajectory
from undiffuse.diffusion.schedule import SCHEDULES, linear_table, log_snr, noise_level
from undiffuse.diffusion.walk import Frame

diffusers = pytest.importorskip("diffusers")
unet2d = pytest.importorskip("undiffuse.nets.unet2d")

NAMES = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}
SPACINGS = {
    "even": [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    "uneven": [999, 856, 713, 570, 428, 285, 142],  # trap 1: 7 steps out of 1000
    "wild": [999, 998, 400, 399, 30, 2, 0],
}


def cases(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """A prediction and a spacing of the steps, with what else is given, by pairs."""
    return covering(list(NAMES), list(SPACINGS), *factors)


def level_of(k: int) -> Tensor:
    return noise_level(
        SCHEDULES["linear"], torch.tensor([(k + 1) / 1000], dtype=torch.float64)
    ).log_snr


def frames_of(
    network: Any,
    shape: tuple[int, int, int],
    prediction: str,
    samples: Sequence[int],
    **options: Any,
) -> list[Frame]:
    denoiser = Denoiser(network, "linear", prediction, shape)
    return list(trajectory(denoiser, samples, Sampling(**options)))


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Frame]]:
    """(their timesteps, prediction, options) -> our steps at the same times, in float64."""
    normal_each = rng.normal_each
    monkeypatch.setattr(rng, "normal_each", lambda *args: normal_each(*args).double())

    def run(timesteps: Sequence[int], prediction: str, **options: Any) -> list[Frame]:
        times = torch.tensor([*(k + 1 for k in timesteps), 0], dtype=torch.float64) / 1000
        monkeypatch.setattr(sampling, "time_grid", lambda *_: times)
        return frames_of(toy, (1, 4, 4), prediction, range(3), steps=len(timesteps), **options)

    return run


def in_double(scheduler: Any) -> Any:
    """Their formulas with a float64 table: in float32, 1 - 0.9999 has three digits."""
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    return scheduler


def noise_of(frame: Frame) -> Tensor:
    return rng.normal_each(range(3), (1, 4, 4), 0, "sampling", frame.index)


# The samplers


def scheduler(kind: Any, prediction: str, clip: bool) -> Any:
    return in_double(kind(prediction_type=NAMES[prediction], clip_sample=clip))


@pytest.mark.parametrize(("prediction", "spacing", "clip"), cases([True, False]))
def test_ddpm(
    frames: Any, prediction: str, spacing: str, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = scheduler(diffusers.DDPMScheduler, prediction, clip)
    theirs.set_timesteps(timesteps=SPACINGS[spacing])
    ours = frames(SPACINGS[spacing], prediction, sampler="ddpm", clip=clip)
    for k, frame in zip(SPACINGS[spacing], ours, strict=True):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *_, frame=frame, **__: noise_of(frame),
        )
        step = theirs.step(toy(frame.x_t, level_of(k)), k, frame.x_t)
        close(frame.x_0, step.pred_original_sample, 1e-5, f"x_0 at {k}")
        close(frame.x_s, step.prev_sample, 1e-5, f"x_s at {k}")


@pytest.mark.parametrize(
    ("prediction", "spacing", "clip", "eta"), cases([True, False], [0, 0.3, 1])
)
def test_ddim(frames: Any, prediction: str, spacing: str, clip: bool, eta: float) -> None:
    theirs = scheduler(diffusers.DDIMScheduler, prediction, clip)
    timesteps = SPACINGS[spacing]
    ours = frames(timesteps, prediction, sampler=f"ddim:eta={eta}", clip=clip)
    for k, before, frame in zip(timesteps, [*timesteps[1:], -1], ours, strict=True):
        # They go 1000 // num_inference_steps back.
        theirs.num_inference_steps = Fraction(1000, k - before)
        step = theirs.step(
            toy(frame.x_t, level_of(k)),
            k,
            frame.x_t,
            eta=eta,
            use_clipped_model_output=True,
            variance_noise=noise_of(frame) if eta else None,
        )
        close(frame.x_0, step.pred_original_sample, 1e-5, f"x_0 at {k}")
        close(frame.x_s, step.prev_sample, 1e-5, f"x_s at {k}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(("prediction", "spacing"), cases())
def test_dpmpp_2m(frames: Any, prediction: str, spacing: str) -> None:
    """A whole run, each on its own path."""
    theirs = in_double(
        diffusers.DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_type="midpoint",
            solver_order=2,
            lower_order_final=True,
            final_sigmas_type="zero",
            prediction_type=NAMES[prediction],
        )
    )
    theirs.set_timesteps(timesteps=SPACINGS[spacing])
    theirs.sigmas = sigmas_of(SPACINGS[spacing])
    ours = frames(SPACINGS[spacing], prediction, sampler="dpmpp-2m", clip=False)
    x = ours[0].x_t
    for k, frame in zip(SPACINGS[spacing], ours, strict=True):
        x = theirs.step(toy(x, level_of(k)), k, x).prev_sample
        # They compute in float32, whose errors long steps to little noise enlarge.
        close(frame.x_s / x.abs().max(), x / x.abs().max(), 1e-4 if spacing == "wild" else 1e-5, k)


def sigmas_of(steps: Sequence[int]) -> Tensor:
    """sigma / alpha at their steps, and 0, in float64. They keep them in float32."""
    bar = linear_table(1e-4, 0.02).exp()[[step + 1 for step in steps]]
    return torch.cat([((1 - bar) / bar).sqrt(), torch.zeros(1, dtype=torch.float64)])


def run_beside(
    frames: Any, theirs: Any, ours: str, spacing: str, prediction: str, tolerance: float
) -> None:
    """A whole run of both, each on its own path, to the step before the last.

    Not all of theirs take a list of times. Then both take theirs."""
    if "timesteps" in inspect.signature(theirs.set_timesteps).parameters:
        theirs.set_timesteps(timesteps=SPACINGS[spacing])
    else:
        theirs.set_timesteps(len(SPACINGS[spacing]))
    steps = theirs.timesteps.tolist()
    theirs.sigmas = sigmas_of(steps)
    own = frames(steps, prediction, sampler=ours, clip=False)
    x = own[0].x_t
    for k, frame in list(zip(steps, own, strict=True))[:-1]:
        x = theirs.step(toy(x, level_of(k)), k, x).prev_sample
        close(frame.x_s / x.abs().max(), x / x.abs().max(), tolerance, f"{ours} at {k}")


def multistep(kind: Any, prediction: str, **options: Any) -> Any:
    return in_double(kind(prediction_type=NAMES[prediction], lower_order_final=False, **options))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("prediction", list(NAMES))
@pytest.mark.parametrize("spacing", ["even", "uneven"])
def test_solvers_of_third_order(frames: Any, prediction: str, spacing: str) -> None:
    third = multistep(
        diffusers.DPMSolverMultistepScheduler, prediction, algorithm_type="dpmsolver++",
        solver_order=3, final_sigmas_type="zero",
    )  # fmt: skip
    run_beside(frames, third, "dpmpp-3m", spacing, prediction, 1e-5)
    for order in (2, 3):
        unipc = multistep(
            diffusers.UniPCMultistepScheduler,
            prediction,
            solver_order=order,
            solver_type="bh2",
            final_sigmas_type="zero",
        )
        run_beside(frames, unipc, f"unipc:order={order}", spacing, prediction, 1e-5)
        deis = multistep(diffusers.DEISMultistepScheduler, prediction, solver_order=order)
        run_beside(frames, deis, f"deis:order={order}", spacing, prediction, 1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_lms(frames: Any) -> None:
    """Their sample is x / alpha. Their 28 timesteps are whole numbers."""
    theirs = diffusers.LMSDiscreteScheduler()
    theirs.set_timesteps(28)
    steps = [round(step) for step in theirs.timesteps.tolist()]
    theirs.sigmas = sigmas_of(steps)
    own = frames(steps, "eps", sampler="lms", clip=False)
    table = linear_table(1e-4, 0.02).double()
    x = own[0].x_t / (table[1000] / 2).exp()
    for number, (k, frame) in enumerate(list(zip(steps, own, strict=True))[:-1]):
        at = theirs.timesteps[number]
        eps = toy(theirs.scale_model_input(x, at), level_of(k))
        x = theirs.step(eps, at, x).prev_sample
        alpha = (table[steps[number + 1] + 1] / 2).exp()
        close(frame.x_s / alpha / x.abs().max(), x / x.abs().max(), 1e-5, f"lms at {k}")


def test_pndm(frames: Any) -> None:
    """Their first step takes two calls, as ours does. Of other predictions they average these."""
    theirs = in_double(diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True))
    theirs.set_timesteps(20)
    calls = theirs.timesteps.tolist()
    steps = list(dict.fromkeys(calls))
    own = frames(steps, "eps", sampler="pndm", clip=False)
    x, passed = own[0].x_t, iter(own[:-1])
    for number, k in enumerate(calls[:-1]):
        x = theirs.step(toy(x, level_of(k)), k, x).prev_sample
        if number:  # after the first call, their sample is the end of Euler's step
            frame = next(passed)
            close(frame.x_s / x.abs().max(), x / x.abs().max(), 1e-5, f"pndm at {k}")


# The network


def test_unet2d_sees_diffusers_own_step() -> None:
    def step_at(t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        level = log_snr(*SCHEDULES["linear"](t.double())).to(dtype)
        return unet2d.linear_step(level, linear_table(1e-4, 0.02))

    every = torch.arange(1000, dtype=torch.float64)
    close(step_at((every + 1) / 1000), every, 1e-8)
    close(step_at((every + 1) / 1000, torch.float32), every.float(), 1e-4)
    assert step_at(torch.tensor([0.5005, 0.0])).tolist() == pytest.approx([499.5, -1])


def small(shape: tuple[int, int, int], conditions: int, attend: bool, heads: int) -> Any:
    torch.manual_seed(0)
    options = {"channels": (8, 16), "blocks": (1, 1), "attention": (False, attend), "dropout": 0}
    return unet2d.UNet2D(shape=shape, conditions=conditions, heads=heads, **options).eval()


@pytest.mark.parametrize(("prediction", "clip"), [("x0", True), ("eps", False), ("v", True)])
def test_unet2d_in_diffusers_pipeline(
    prediction: str, clip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved as a DDIM pipeline and loaded again, it makes the same images from the same noise."""
    ours = small((1, 8, 8), conditions=0, attend=False, heads=1)
    scheduler = diffusers.DDIMScheduler(
        prediction_type=NAMES[prediction],
        clip_sample=clip,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    diffusers.DDIMPipeline(ours.model, scheduler).save_pretrained(tmp_path)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)

    frames = frames_of(ours, (1, 8, 8), prediction, range(2), sampler="ddim", steps=10, clip=clip)
    randn = "diffusers.pipelines.ddim.pipeline_ddim.randn_tensor"
    monkeypatch.setattr(randn, lambda *_, **__: frames[0].x_t)
    options = {"num_inference_steps": 10, "use_clipped_model_output": True, "output_type": "pt"}
    theirs = pipeline(batch_size=2, **options).images
    assert pipeline.scheduler.timesteps.tolist() == SPACINGS["even"]
    close((frames[-1].x_s / 2 + 0.5).clamp(0, 1), theirs, 1e-4)


def test_unet2d_pads_odd_sizes() -> None:
    """7 is not a multiple of 2, so a row of zeros is added, and cut off again."""
    ours = small((1, 7, 6), conditions=2, attend=True, heads=2)
    x = torch.randn(2, 1, 7, 6)
    condition = torch.tensor([0, 2])
    padded = torch.zeros(2, 1, 8, 6)
    padded[:, :, :7] = x
    steps, levels = torch.tensor([999.0, 499.0]), torch.cat([level_of(999), level_of(499)])
    with torch.no_grad():
        theirs = ours.model(padded, steps, class_labels=condition).sample[:, :, :7]
        close(ours(x, levels.float(), condition), theirs, 1e-4)


def test_unet2d_refuses_a_level_narrower_than_a_head() -> None:
    options = {"shape": (1, 8, 8), "conditions": 0, "channels": (8, 16, 32), "blocks": (1, 1, 1)}
    every, two, one = (True, True, True), (False, True, True), (False, False, True)
    with pytest.raises(
        UserError, match=r"a head has 16 channels, and .* only 8; give heads=4 or more"
    ):
        unet2d.UNet2D(attention=every, heads=2, dropout=0, **options)
    for heads, attention in ((4, every), (2, two), (1, one)):
        network = unet2d.UNet2D(attention=attention, heads=heads, dropout=0, **options)
        assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "undiffuse.nets.unet2d")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    said = r"'unet2d' needs the diffusers library.*pip install 'undiffuse\[diffusers\]'"
    with pytest.raises(UserError, match=said):
        importlib.import_module("undiffuse.nets.unet2d")
