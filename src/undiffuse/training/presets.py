"""The presets: the values that each sets, and the reasons.

A field that neither a preset nor a flag sets has its own default and reason (config.py). Measured
values are from LOG.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from undiffuse.base.errors import UserError
from undiffuse.base.table import written
from undiffuse.nets import NETWORKS
from undiffuse.training.config import BUDGETS, FORMER, Config, validated

PRESETS: dict[str, dict[str, tuple[Any, str]]] = {
    "fast": {
        "minutes": (
            10.0,
            "ten minutes on two CPU cores give digits at 2 to 3 times the distance of real digits",
        ),
    },
    "handout": {
        "minutes": (25.0, "measured: 3.7 passes over MNIST on two CPU cores"),
        "net": ("unet2d", "the handout suggests diffusers' UNet2DModel"),
        "schedule": ("linear", "Ho et al. 2020, the handout's baseline"),
        "chain": (1000, "T of Ho et al. 2020, with t uniform in {2..T} as in the handout's (6)"),
        "predict": ("x0", "the handout's network predicts the image"),
        "weighting": ("uniform", "the handout's (6) is the plain squared error"),
        "times": ("uniform", "the handout samples t uniformly from {2..T}"),
        "batch_size": (128, "that of Ho et al. 2020 for CIFAR-10; not tuned"),
        "lr": (2e-3, "not tuned"),
        "warmup": (100, "6% of the steps of 25 minutes; not tuned"),
        "clusters": (0, "the handout's network sees x_t and t only"),
        "stratified": (False, "the handout samples every t independently"),
        "sampler": ("ddpm", "the handout's (8), corrected"),
        "sample_calls": (25, "25 steps of (8), with one network call each; not tuned"),
    },
    "likelihood": {
        "minutes": (15.0, "measured: 0.94 bits/dim on MNIST, on two CPU cores"),
        "net": ("categorical", "separates neighbouring 8-bit values, which bfloat16 cannot"),
        "predict": ("x0", "the network's output is a mean over the 8-bit values"),
        "schedule": (
            "log-linear:snr_max=14,snr_min=-10",
            "ends at log-SNR 14, where the 8-bit value is certain",
        ),
        "weighting": ("snr", "the weight of an error in the bound, at each noise level"),
        "times": (
            "logit-normal:mean=-0.6,std=1.2",
            "most of them at log-SNRs 0 to 12, where most bits are; measured: 0.943 bits/dim, "
            "against 0.959 before",
        ),
        "batch_size": (
            128,
            "the large weights at low noise make the gradients of few images vary; measured: 64 "
            "images are no better",
        ),
        "clusters": (0, "the likelihood is that of the unconditional prediction"),
        "guidance": (1.0, "guided samples are not of the model whose likelihood is measured"),
        "sample_calls": (50, "much of this schedule has little visible noise; not tuned"),
    },
}
"""Each preset: field -> (value, reason)."""


def make_config(preset: str = "fast", **chosen: Any) -> Config:
    """The configuration of `preset` with the fields in `chosen` replaced.

    A budget in `chosen` replaces the preset's. Names that are not fields of `Config` are options of
    the network: channels=(64, 128) stands for net="unet:channels=64/128". Raises UserError, one
    sentence, for the first value that does not fit."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset called '{preset}'; there are: {', '.join(PRESETS)}")
    chosen = {FORMER.get(name, name): value for name, value in chosen.items()}
    values = {name: value for name, (value, _) in PRESETS[preset].items()}
    if any(chosen.get(budget) is not None for budget in BUDGETS):
        values.pop("minutes")
    values |= {name: value for name, value in chosen.items() if name in Config.model_fields}
    options = {name: value for name, value in chosen.items() if name not in Config.model_fields}
    net = values.get("net", Config.model_fields["net"].default)
    return validated({"preset": preset, **values, "net": with_options(net, options)})


def with_options(net: Any, options: dict[str, Any]) -> Any:
    """A network's spec with these options added. Options that are None are left out.

    Raises UserError for options that the network does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given or not isinstance(net, str):
        return net
    name, _, former = net.partition(":")
    NETWORKS.check(name)
    if unknown := given.keys() - NETWORKS.defaults(name).keys():
        listed = ", ".join(NETWORKS.defaults(name))
        raise UserError(
            f"there is no hyperparameter '{min(unknown)}'; the options of network '{name}' are: "
            f"{listed}"
        )
    own = [f"{option}={written(value)}" for option, value in given.items()]
    return f"{name}:{','.join([*filter(None, [former]), *own])}"


def as_command(config: Config, out: Path | str, decided: Collection[str] = ()) -> str:
    """The command that begins or resumes a run of this configuration in the folder `out`.

    decided: the fields that were decided from the data, which need no flag."""
    usual = make_config(config.preset) if config.preset in PRESETS else make_config()
    words = [
        "undiffuse",
        "train",
        *([] if config.preset == usual.preset == "fast" else ["--preset", config.preset]),
    ]
    for name in Config.model_fields:
        value, flag = getattr(config, name), name.replace("_", "-")
        # Where minutes are None, there are epochs or steps.
        if (
            name == "preset"
            or name in decided
            or value == getattr(usual, name)
            or (name == "minutes" and value is None)
        ):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--out", str(out)])


CHOSEN = {
    "conditional": "chosen for this run: classes can be asked for, and the network has to learn "
    "the images of one class at a time",
}
"""Why someone may choose another value than the default, by field."""


def reasons(config: Config) -> dict[str, str]:
    """The reason for each field's value: the preset's, the default's or "chosen for this run"."""
    found = {}
    preset = PRESETS.get(config.preset, {})
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if name in preset and preset[name][0] == value:
            found[name] = preset[name][1]
        elif value == field.default and (name not in preset or value is None):
            found[name] = (field.description or "").partition(" - ")[2]
        else:
            found[name] = CHOSEN.get(name, "chosen for this run")
    return found


def differences(there: Config, asked: Config, but: Collection[str] = ()) -> list[str]:
    """`field: value there, value asked` for each field that differs.

    there: the configuration of a run. asked: the one that is asked for. but: fields that may
    differ."""
    return [
        f"{name}: {getattr(there, name)} there, {getattr(asked, name)} asked"
        for name in Config.model_fields
        if name not in but and getattr(there, name) != getattr(asked, name)
    ]
