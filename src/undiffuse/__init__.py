"""undiffuse: understand, train and trust a small diffusion model, on a laptop's CPU.

import undiffuse
run = undiffuse.train("runs/mine", minutes=10, conditional=True)
images = undiffuse.sample(run, n=64, sampler="ddim", steps=25)  # uint8 (64, 28, 28)
denoiser = undiffuse.load(run)  # (x_t, t, label) -> the guess at x_0
"""

from __future__ import annotations

import importlib
from typing import Any

from undiffuse.base import engine as _engine  # noqa: F401 - notes when the process started

__version__ = "0.1.0"

# Imported when they are first used: `undiffuse --help` must not wait for torch.
_PUBLIC = {
    "train": "api",
    "sample": "api",
    "load": "api",
    "evaluate": "runs.evaluation",
    "Denoiser": "diffusion.denoiser",
    "UserError": "base.errors",
    "SCHEDULES": "diffusion.schedule",
    "PREDICTIONS": "diffusion.denoiser",
    "WEIGHTINGS": "diffusion.weightings",
    "SAMPLERS": "diffusion.samplers",
    "GRIDS": "diffusion.grids",
    "NETWORKS": "nets",
    "DATASETS": "data.loading",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'undiffuse' has no attribute '{name}'")
    return getattr(importlib.import_module(f"undiffuse.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
