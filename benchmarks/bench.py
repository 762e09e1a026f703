"""`make bench`: the training speed of the default network beside diffusers' UNet2DModel.

It also measures the sampling speed, the rate of the machine's convolutions, and the speed that is
left beside other programs. All figures are of one run on one machine. The contestants take turns,
so their ratios can be compared with those of other machines. The speeds themselves hold for this
machine only. The figures are printed and written to bench.json.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from undiffuse.base import compiler as compilers
from undiffuse.base import engine
from undiffuse.diffusion.sampling import sample
from undiffuse.training.clock import Clock
from undiffuse.training.experiment import Experiment, Part, make_experiment
from undiffuse.training.loop import fit
from undiffuse.training.options import make_options, resolve
from undiffuse.training.presets import make_config
from undiffuse.training.records import StepTaken

BATCH = 128  # images a step
ROUNDS = 3
SECONDS = 12.0  # of training in a round, after two steps that warm up
CONVOLUTIONS = ((64, 28), (64, 14), (128, 14), (128, 7), (256, 7))
"""(channels, pixels a side) of the 3x3 convolutions."""


OTHERS = {
    "a_busy_process": "while True: pass",
    "torch_on_all_cores": "import torch\na = torch.randn(900, 900)\nwhile True: (a @ a).relu()",
}
"""Programs that run beside training and sampling, in Python."""


def pace(step: Callable[[], object], at_least: float = SECONDS) -> float:
    """The median seconds of a step. Two steps before them warm up and compile.

    at_least: seconds that all steps take together."""
    step(), step()
    seconds: list[float] = []
    while sum(seconds) < at_least or len(seconds) < 3:
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def trainer(**changes: str) -> tuple[Experiment, Callable[[], None]]:
    """The preset `fast` and a function that takes a step of it, without held-out images.

    changes: fields of `SessionOptions`."""
    config = make_config("fast", batch_size=BATCH)
    experiment = make_experiment(config)
    held_out = experiment.held_out.dataset.take(torch.arange(0))
    experiment = replace(experiment, held_out=Part(held_out))
    own, _ = resolve(make_options(**changes), config, None)
    records = fit(experiment, Clock(lambda: 0.0, config.decay, steps=10**6), own)

    def step() -> None:
        while not isinstance(next(records), StepTaken):
            pass

    return experiment, step


def train_undiffuse(**changes: str) -> dict[str, float]:
    """The seconds of a training step, and the FLOP of an image, forward and backward.

    changes: as for `trainer`."""
    experiment, step = trainer(**changes)
    condition = experiment.training.condition
    assert condition is not None
    with FlopCounterMode(display=False) as counter:
        network = experiment.state.network
        network(torch.zeros(1, *experiment.facts.shape), torch.zeros(1), condition[:1])
    return {"seconds": pace(step), "flops": 3 * counter.get_total_flops()}


def sampler(calls: int) -> Callable[[], object]:
    """A function that samples 256 images with so many network calls each.

    The model is the preset `fast`, conditional and guided, as in `undiffuse sample`."""
    config = make_config("fast", conditional=True)
    denoiser = make_experiment(config).denoiser
    denoiser.network.eval()  # type: ignore[attr-defined]  # a module
    classes = torch.arange(256) % len(denoiser.conditioning.classes)
    sampling = replace(config.sampling(3000, denoiser.conditioning), calls=calls)
    return lambda: sample(denoiser, range(256), sampling, classes=classes)


def sample_undiffuse() -> dict[str, float]:
    """Images per second that are sampled, by network calls for an image."""
    return {str(calls): 256 / pace(sampler(calls), 0) for calls in (5, 10, 25)}


def beside_others() -> dict[str, float]:
    """The share of their speed that training and sampling keep beside another program.

    Each is measured alone and beside it, in turns, in one process."""
    shares = {}
    for what, work in (("training", trainer()[1]), ("sampling", sampler(5))):
        for name, program in OTHERS.items():
            ratios = []
            for _ in range(ROUNDS):
                alone = pace(work, 3)
                with subprocess.Popen([sys.executable, "-c", program]) as other:
                    time.sleep(3)  # until it has imported torch
                    ratios.append(alone / pace(work, 3))
                    other.kill()
            shares[f"{what}_beside_{name}"] = statistics.median(ratios)
    return shares


def train_unet2d(best: bool) -> dict[str, float]:
    """Train diffusers' UNet2DModel as the tutorials do: fp32, not compiled.

    best: in bf16, and compiled where there is a C++ compiler. Returns the same as
    `train_undiffuse`."""
    from diffusers import UNet2DModel

    from undiffuse.nets.unet2d import upsample_by_views

    model = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    if best:
        upsample_by_views(model)  # torch 2.13 compiles its upsampling with a wrong gradient
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, target = torch.randn(2, BATCH, 1, 28, 28)

    def loss(t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=best):
            return nn.functional.mse_loss(model(x, t).sample.float(), target)

    # diffusers causes this warning.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    run = torch.compile(loss) if best and compilers.compiler() else loss

    def step() -> None:
        run(torch.randint(0, 1000, (BATCH,))).backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        model(x[:1], torch.zeros(1))
    return {"seconds": pace(step), "flops": 3 * counter.get_total_flops()}


def convolution_rate() -> dict[str, float]:
    """The rate of 3x3 convolutions in bf16, forward and backward, in FLOP/s.

    `rate` is the highest of all shapes in CONVOLUTIONS."""
    rates = {}
    for channels, side in CONVOLUTIONS:
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(
            torch.bfloat16, memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        x = torch.randn(BATCH, channels, side, side, dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        x.requires_grad_()
        gradient = torch.randn_like(x)
        flops = 3 * 2 * BATCH * 9 * channels**2 * side**2
        seconds = []
        for _ in range(12):
            begin = time.perf_counter()
            layer(x).backward(gradient)
            seconds.append(time.perf_counter() - begin)
        rates[f"{channels}x{side}x{side}"] = flops / statistics.median(seconds[2:])
    return {"rate": max(rates.values()), **rates}


CONTESTANTS: dict[str, Callable[[], dict[str, float]]] = {
    "undiffuse": train_undiffuse,
    "unet2d": lambda: train_unet2d(best=False),
    "unet2d-best": lambda: train_unet2d(best=True),
    "convolution": convolution_rate,
    "sampling": sample_undiffuse,
    "beside others": beside_others,
    "undiffuse, compiled": lambda: train_undiffuse(compile="on"),
    "undiffuse, fp32": lambda: train_undiffuse(precision="fp32"),
}
ONCE = ("beside others", "unet2d-best", "undiffuse, compiled", "undiffuse, fp32")
"""Contestants of the first round only. Their figures are for information."""


def measure(name: str) -> dict[str, float]:
    """The figures of a contestant. It has a process of its own, for its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        subprocess.run([sys.executable, __file__, name, str(file)], check=True)
        return dict(json.loads(file.read_text()))


def main() -> None:
    """Measure all contestants, print the figures and write bench.json."""
    if len(sys.argv) == 3:  # the contestant's own process
        result = CONTESTANTS[sys.argv[1]]()
        result["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        Path(sys.argv[2]).write_text(json.dumps(result))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for turn in range(ROUNDS):
        for name in CONTESTANTS:
            if name in ONCE and turn:
                continue
            rounds[name].append(measure(name))
            print(f"round {turn + 1} of {ROUNDS}: {name} done", flush=True)

    def median(name: str, key: str) -> float:
        return statistics.median(result[key] for result in rounds[name])

    speed = {
        name: BATCH / median(name, "seconds")
        for name in CONTESTANTS
        if name not in ("convolution", "sampling", "beside others")
    }
    rate = median("convolution", "rate")
    reached = median("undiffuse", "flops") * speed["undiffuse"]
    figures: dict[str, Any] = {
        "train_images_per_s": speed["undiffuse"],
        "unet2d_train_images_per_s": speed["unet2d"],
        "unet2d_best_train_images_per_s": speed["unet2d-best"],
        "ratio": statistics.median(
            theirs["seconds"] / ours["seconds"]
            for ours, theirs in zip(rounds["undiffuse"], rounds["unet2d"], strict=True)
        ),
        "ratio_to_unet2d_best": speed["undiffuse"] / speed["unet2d-best"],
        "speed_when_compiled": speed["undiffuse, compiled"] / speed["undiffuse"],
        "share_of_speed_fp32": speed["undiffuse, fp32"] / speed["undiffuse"],
        "conv_rate_gflops": rate / 1e9,
        "train_gflops": reached / 1e9,
        "conv_rate_share": reached / rate,
        **{
            f"sample_images_per_s_{calls}_calls": median("sampling", str(calls))
            for calls in (5, 10, 25)
        },
        **{
            f"speed_share_{what}": share
            for what, share in rounds["beside others"][0].items()
            if what != "memory_mb"
        },
        "peak_memory_mb": max(result["memory_mb"] for result in rounds["undiffuse"]),
        "batch_size": BATCH,
        "machine": {
            **engine.machine_facts(),
            "cores": os.cpu_count(),
            "cpu_name": platform.processor() or platform.machine(),
        },
    }
    Path("bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    for key, value in figures.items():
        print(f"{key:32} {value:,.2f}" if isinstance(value, float) else f"{key:32} {value}")


if __name__ == "__main__":
    main()
