"""undiffuse: understand, train and trust a small diffusion model.

import undiffuse
run = undiffuse.train("runs/mine", minutes=10, conditional=True)
images = undiffuse.sample(run, n=64, sampler="ddim", steps=25)  # uint8 (64, 28, 28)
model = undiffuse.load(run)
x_0_hat = model(x_t, t, classes=[7, 7])  # denoised images
"""

from __future__ import annotations

import importlib
from typing import Any

from undiffuse.base import engine as _engine  # noqa: F401 - notes when the process started

__version__ = "0.2.0"

# These are imported when they are first used, because `undiffuse --help` must not import torch.
_PUBLIC = {
    "train": "api",
    "sample": "api",
    "load": "api",
    "evaluate": "runs.evaluation",
    "Model": "model",
    "Config": "training.config",
    "SessionOptions": "training.options",
    "UserError": "base.errors",
    "SCHEDULES": "diffusion.schedule",
    "PREDICTIONS": "diffusion.denoiser",
    "WEIGHTINGS": "diffusion.weightings",
    "TIMES": "diffusion.times",
    "OBJECTIVES": "diffusion.objectives",
    "SAMPLERS": "diffusion.step",
    "GRIDS": "diffusion.grids",
    "GUIDANCES": "diffusion.guidance",
    "METHODS": "diffusion.inverse",
    "OPERATORS": "diffusion.operators",
    "NETWORKS": "nets",
    "OPTIMIZERS": "training.optimizers",
    "DATASETS": "data.loading",
    "METRICS": "measuring.quality",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'undiffuse' has no attribute '{name}'")
    return getattr(importlib.import_module(f"undiffuse.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
