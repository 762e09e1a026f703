"""Our samplers beside diffusers' schedulers, step by step, and our UNet2D in diffusers' own pipeline.

Their step k is our time (k + 1) / 1000 of the schedule `linear`, and their last step ends at our time 0.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.base import rng
from undiffuse.base.errors import UserError
from undiffuse.diffusion import process, sampling
from undiffuse.diffusion.denoiser import Denoiser
from undiffuse.diffusion.sampling import trajectory
from undiffuse.diffusion.schedule import SCHEDULES, linear_table, log_snr, noise_level

diffusers = pytest.importorskip("diffusers")
unet2d = pytest.importorskip("undiffuse.nets.unet2d")

NAMES = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}
SPACINGS = {
    "even": [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
    "uneven": [999, 856, 713, 570, 428, 285, 142],  # trap 1: 7 steps out of 1000
    "wild": [999, 998, 400, 399, 30, 2, 0],
}

each_prediction = pytest.mark.parametrize("prediction", NAMES)
each_spacing = pytest.mark.parametrize("spacing", SPACINGS)
each_clip = pytest.mark.parametrize("clip", [True, False])


def network(x: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
    """No perfect denoiser, and larger than 1: there is something to clip."""
    return 1.5 * (1.3 * x + process.expand(0.1 * level, x)).tanh()


def level_of(k: int) -> Tensor:
    return noise_level(
        SCHEDULES["linear"], torch.tensor([(k + 1) / 1000], dtype=torch.float64)
    ).log_snr


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[sampling.Frame]]:
    """(their timesteps, prediction, options) -> our steps at the same times, in float64."""
    normal_each = rng.normal_each
    monkeypatch.setattr(rng, "normal_each", lambda *args: normal_each(*args).double())

    def run(timesteps: Sequence[int], prediction: str, **options: Any) -> list[sampling.Frame]:
        times = torch.tensor([*(k + 1 for k in timesteps), 0], dtype=torch.float64) / 1000
        monkeypatch.setattr(sampling, "time_grid", lambda *_: times)
        denoiser = Denoiser(network, "linear", prediction, (1, 4, 4))
        return list(trajectory(denoiser, range(3), steps=len(timesteps), **options))

    return run


def in_double(scheduler: Any) -> Any:
    """Their formulas with a float64 table: in float32, 1 - 0.9999 has three digits."""
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    return scheduler


def noise_of(frame: sampling.Frame) -> Tensor:
    return rng.normal_each(range(3), (1, 4, 4), 0, "sampling", frame.index)


def close(one: Tensor, two: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


# The samplers


@each_clip
@each_spacing
@each_prediction
def test_ddpm(
    frames: Any, prediction: str, spacing: str, clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = in_double(diffusers.DDPMScheduler(prediction_type=NAMES[prediction], clip_sample=clip))
    theirs.set_timesteps(timesteps=SPACINGS[spacing])
    ours = frames(SPACINGS[spacing], prediction, sampler="ddpm", clip=clip)
    for k, frame in zip(SPACINGS[spacing], ours, strict=True):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *_, f=frame, **__: noise_of(f),
        )
        step = theirs.step(network(frame.x_t, level_of(k)), k, frame.x_t)
        close(frame.x_0, step.pred_original_sample)
        close(frame.x_s, step.prev_sample)


@pytest.mark.parametrize("eta", [0, 0.3, 1])
@each_clip
@each_spacing
@each_prediction
def test_ddim(frames: Any, prediction: str, spacing: str, clip: bool, eta: float) -> None:
    theirs = in_double(diffusers.DDIMScheduler(prediction_type=NAMES[prediction], clip_sample=clip))
    timesteps = SPACINGS[spacing]
    ours = frames(timesteps, prediction, sampler=f"ddim:eta={eta}", clip=clip)
    for k, before, frame in zip(timesteps, [*timesteps[1:], -1], ours, strict=True):
        theirs.num_inference_steps = Fraction(
            1000, k - before
        )  # they go 1000 // num_inference_steps back
        step = theirs.step(
            network(frame.x_t, level_of(k)),
            k,
            frame.x_t,
            eta=eta,
            use_clipped_model_output=True,
            variance_noise=noise_of(frame) if eta else None,
        )
        close(frame.x_0, step.pred_original_sample)
        close(frame.x_s, step.prev_sample)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@each_spacing
@each_prediction
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
    ours = frames(SPACINGS[spacing], prediction, sampler="dpmpp-2m", clip=False)
    x = ours[0].x_t
    for k, frame in zip(SPACINGS[spacing], ours, strict=True):
        x = theirs.step(network(x, level_of(k)), k, x).prev_sample
        close(frame.x_s / x.abs().max(), x / x.abs().max(), 1e-4)  # they calculate in float32


# The network


def test_unet2d_is_told_diffusers_own_step() -> None:
    def step_at(t: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return unet2d.linear_step(
            log_snr(*SCHEDULES["linear"](t.double())).to(dtype), linear_table(1e-4, 0.02)
        )

    every = torch.arange(1000, dtype=torch.float64)
    close(step_at((every + 1) / 1000), every, 1e-8)
    close(step_at((every + 1) / 1000, torch.float32), every.float(), 1e-4)
    assert step_at(torch.tensor([0.5005, 0.0])).tolist() == pytest.approx([499.5, -1])


@each_clip
@each_prediction
def test_unet2d_in_diffusers_pipeline(
    prediction: str, clip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved as a DDIM pipeline, loaded again, and run from the same noise, it draws the same images."""
    torch.manual_seed(0)
    ours = unet2d.UNet2D(
        shape=(1, 8, 8),
        classes=0,
        channels=(8, 16),
        blocks=(1, 1),
        attention=(False, False),
        heads=1,
        dropout=0,
    ).eval()
    scheduler = diffusers.DDIMScheduler(
        prediction_type=NAMES[prediction],
        clip_sample=clip,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    diffusers.DDIMPipeline(ours.model, scheduler).save_pretrained(tmp_path)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)

    denoiser = Denoiser(ours, "linear", prediction, (1, 8, 8))
    drawn = list(trajectory(denoiser, range(2), sampler="ddim", steps=10, clip=clip))
    monkeypatch.setattr(
        "diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", lambda *_, **__: drawn[0].x_t
    )
    theirs = pipeline(
        batch_size=2, num_inference_steps=10, use_clipped_model_output=True, output_type="pt"
    ).images
    assert pipeline.scheduler.timesteps.tolist() == SPACINGS["even"]
    close((drawn[-1].x_s / 2 + 0.5).clamp(0, 1), theirs, 1e-4)


def test_unet2d_pads_odd_sizes() -> None:
    """28 = 4 x 7 is no multiple of 8: zeros are added, and cut off again."""
    torch.manual_seed(0)
    ours = unet2d.UNet2D(
        shape=(1, 7, 6),
        classes=2,
        channels=(8, 16),
        blocks=(1, 1),
        attention=(False, True),
        heads=2,
        dropout=0,
    ).eval()
    x = torch.randn(2, 1, 7, 6)
    label = torch.tensor([0, 2])
    padded = torch.zeros(2, 1, 8, 6)
    padded[:, :, :7] = x
    with torch.no_grad():
        theirs = ours.model(padded, torch.tensor([999.0, 499.0]), class_labels=label).sample[
            :, :, :7
        ]
        close(ours(x, torch.cat([level_of(999), level_of(499)]).float(), label), theirs, 1e-4)


def test_unet2d_refuses_a_level_narrower_than_a_head() -> None:
    options = {
        "shape": (1, 8, 8),
        "classes": 0,
        "channels": (8, 16, 32),
        "blocks": (1, 1, 1),
        "dropout": 0,
    }
    with pytest.raises(UserError, match=r"8 channels, and a head 16, .* give --heads 4 or more"):
        unet2d.UNet2D(attention=(True, True, True), heads=2, **options)
    for heads, attention in (
        (4, (True, True, True)),
        (2, (False, True, True)),
        (1, (False, False, True)),
    ):
        network = unet2d.UNet2D(attention=attention, heads=heads, **options)
        assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


def test_without_diffusers_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "undiffuse.nets.unet2d")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        UserError,
        match=r"'unet2d' needs the diffusers library.*pip install 'undiffuse\[diffusers\]'",
    ):
        importlib.import_module("undiffuse.nets.unet2d")
