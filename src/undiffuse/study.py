"""Studies: what one choice does, everything else being the same. `samplers` compares samplers on one finished run.

A study is kept in RUN/study/, and goes on where it was interrupted: each row is written down when it is there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse import data, features, images, machine, metrics
from undiffuse.errors import UserError
from undiffuse.files import write_atomic
from undiffuse.run import Run
from undiffuse.sampling import draw, trajectory
from undiffuse.training import in_precision

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from undiffuse.denoiser import Denoiser

SAMPLERS = ("mean", "ddpm-printed", "ddpm", "ddim", "heun", "dpmpp-2m")
"""(7), (8) as printed and corrected, DDIM, and the two of second order."""

CALLS = (5, 10, 25)
"""Network calls an image, for each sampler; Heun's method takes one less of an even number."""

FEWEST, MOST = 50, 2000  # images of each case
SHOWN = 10
BATCH = 250


@dataclass(frozen=True)
class Case:
    """A sampler with its number of steps, and the network calls that these take."""

    sampler: str
    steps: int
    calls: int


def cases() -> Iterator[Case]:
    for sampler in SAMPLERS:
        for calls in CALLS:
            steps = (calls + 1) // 2 if sampler == "heun" else calls
            yield Case(sampler, steps, 2 * steps - 1 if sampler == "heun" else steps)


@dataclass
class SamplerStudy:
    """A comparison of samplers on one run, made ready: from the same noise and labels, without guidance.

    n: images of each case, as many as the minutes allow. seconds: what that will take, as far as is known."""

    run: Run
    denoiser: Denoiser
    n: int
    seed: int
    seconds: float
    done: list[dict[str, Any]]

    @property
    def path(self) -> Path:
        return self.run.path / "study" / "samplers.json"

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, each written down; those that were there from before first."""
        yield from self.done
        about = self.run.about()
        whole = data.load(about.config.data, about.config.size)
        scorer = features.scorer(whole)
        label = self.labels(whole)
        self.path.parent.mkdir(exist_ok=True)
        write_atomic(self.path.parent / "denoising.png", images.png_bytes(self.denoising(label)))
        for case in cases():
            if any((row["sampler"], row["steps"]) == (case.sampler, case.steps) for row in self.done):
                continue
            begin = time.monotonic()
            drawn = torch.cat(
                [
                    data.to_uint8(
                        draw(
                            self.denoiser,
                            part.tolist(),
                            sampler=case.sampler,
                            steps=case.steps,
                            grid=about.config.grid,
                            label=None if label is None else label[part],
                            seed=self.seed,
                        )
                    )
                    for part in torch.arange(self.n).split(BATCH)
                ]
            )
            row: dict[str, Any] = {
                "sampler": case.sampler,
                "steps": case.steps,
                "calls": case.calls,
                "seconds_per_image": (time.monotonic() - begin) / self.n,
                "spread": spread(drawn, label),
                "picture": f"{case.sampler}-{case.steps}.png",
            }
            if scorer is not None:
                x, probabilities = scorer.network(drawn)
                distance = metrics.frechet_interval(x, scorer.moments, self.seed)
                row |= {
                    "frechet": distance.value,
                    "frechet_low": distance.low,
                    "frechet_high": distance.high,
                    "classes": torch.bincount(probabilities.argmax(dim=1), minlength=len(whole.classes)).tolist(),
                    "confidence": probabilities.amax(dim=1).mean().item(),
                }
            sheet = images.grid(drawn[:SHOWN], SHOWN)
            write_atomic(self.path.parent / str(row["picture"]), images.png_bytes(sheet))
            self.done.append(row)
            self.save(whole)
            yield row

    def denoising(self, label: Tensor | None, count: int = 3, columns: int = 11) -> Image.Image:
        """Some images on their way from noise, by (8): for each a row of x_t, and below it one of the guess x_0_hat."""
        label = None if label is None else label[:count]
        frames = list(trajectory(self.denoiser, range(count), steps=50, label=label, seed=self.seed))
        shown = [frames[round(k * (len(frames) - 1) / (columns - 1))] for k in range(columns)]
        both = torch.stack([torch.stack([frame.x_t, frame.x_0]) for frame in shown])  # (columns, 2, count, C, H, W)
        return images.grid(data.to_uint8(both.permute(2, 1, 0, 3, 4, 5).flatten(0, 2)), columns)

    def labels(self, whole: data.Dataset) -> Tensor | None:
        """Random labels of the data, for a conditional run."""
        return data.random_labels(whole, self.n, self.seed, "study labels") if self.denoiser.classes else None

    def save(self, whole: data.Dataset) -> None:
        label = whole.labels[: self.n] if self.denoiser.classes and whole.labels is not None else None
        content = {
            "format": 1,
            "n": self.n,
            "seed": self.seed,
            "guidance": 1.0,
            "real_spread": spread(whole.images[: self.n], label),
            "machine": machine.facts(),
            "rows": self.done,
        }
        write_atomic(self.path, json.dumps(content, indent=2).encode())


def spread(drawn: Tensor, label: Tensor | None = None) -> float:
    """How different images uint8 (n, C, H, W) are from one another: the root mean square, in grey levels, of each one's difference
    from their mean; from that of its own class, where there are labels (n,)."""
    x = drawn.double()
    label = torch.zeros(len(x), dtype=torch.long) if label is None else label
    means = torch.stack([x[label == k].mean(dim=0) for k in range(int(label.max()) + 1)])
    return (x - means[label]).square().mean().sqrt().item()


def sampler_study(path: Path, minutes: float = 2.0, seed: int = 0) -> SamplerStudy:
    """Read the run, and find by a timed batch how many images the minutes allow. Raises UserError where it cannot be."""
    if not minutes > 0:
        raise UserError(f"a study takes some time: --minutes must be above 0, not {minutes:g}")
    run = Run(path)
    denoiser, _ = run.denoiser()
    precision = "bf16" if machine.has_bf16() else "fp32"
    quick = replace(denoiser, network=in_precision(denoiser.network, precision))
    study = SamplerStudy(run, quick, 0, seed, 0.0, [])
    label = torch.zeros(BATCH, dtype=torch.long) if denoiser.classes else None

    def timed(steps: int) -> float:
        begin = time.monotonic()
        list(trajectory(quick, range(BATCH), steps=steps, label=label))
        return time.monotonic() - begin

    timed(1)
    per_call = timed(4) / 4 / BATCH
    calls = sum(case.calls for case in cases())
    study.n = max(FEWEST, min(MOST, int(60 * minutes / (calls * per_call))))
    study.seconds = study.n * calls * per_call
    if study.path.is_file():
        try:
            old = json.loads(study.path.read_bytes())
            if (old["format"], old["seed"]) == (1, seed):
                study.n, study.done = int(old["n"]), list(old["rows"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{study.path} can't be read ({error}); remove it to begin anew") from error
        left = calls - sum(row["calls"] for row in study.done)
        study.seconds = study.n * left * per_call
    return study
