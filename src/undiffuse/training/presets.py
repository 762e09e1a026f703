"""The presets, each one screen: what it sets, and why.

What neither a preset nor a flag sets has the field's own default and reason (config.py).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from undiffuse.base.errors import UserError
from undiffuse.base.table import written
from undiffuse.nets import NETWORKS
from undiffuse.training.config import FORMER, Config, validated

PRESETS: dict[str, dict[str, tuple[Any, str]]] = {
    "fast": {
        "minutes": (
            10.0,
            "ten minutes on two CPU cores give 2 to 3 times the distance of real digits",
        ),
    },
    "handout": {
        "minutes": (25.0, "about four passes over MNIST on two CPU cores"),
        "net": ("unet2d", "the handout suggests diffusers' UNet2DModel"),
        "schedule": ("linear", "Ho et al. 2020, the handout's baseline"),
        "chain": (1000, "T of Ho et al. 2020; t uniform on {2..T}, the handout's (6)"),
        "predict": ("x0", "the handout's network predicts the image"),
        "weighting": ("uniform", "the handout's (6) is plain squared error"),
        "times": ("uniform", "the handout samples t uniformly from {2..T}"),
        "batch_size": (128, "as in tutorials of UNet2DModel; not tuned"),
        "lr": (2e-3, "as its larger batches and longer run were tried with"),
        "warmup": (100, "a twentieth of the run"),
        "clusters": (0, "the handout's network sees x_t and t only"),
        "stratified": (False, "the handout samples t independently"),
        "sampler": ("ddpm", "(8), corrected"),
        "sample_calls": (25, "(8) takes one call a step, and more steps are better"),
    },
    "likelihood": {
        "minutes": (15.0, "most of the gain is in the first quarter of an hour"),
        "net": (
            "categorical",
            "it tells neighbouring 8-bit values apart, which bfloat16 alone cannot",
        ),
        "predict": ("x0", "x_0_hat is a mean over 8-bit values"),
        "schedule": (
            "log-linear:snr_max=14,snr_min=-10",
            "to log-SNR 14, where an 8-bit value is certain",
        ),
        "weighting": ("snr", "what an error costs in the bound, at each noise level"),
        "times": (
            "logit-normal:mean=-0.6,std=1.2",
            "most where the bits are spent, log-SNRs 0 to 12",
        ),
        "batch_size": (128, "the weights of low noise are large, and their gradients loud"),
        "clusters": (0, "the likelihood of an image is that of all clusters together"),
        "guidance": (1.0, "guided samples are not the model whose likelihood is measured"),
        "sample_calls": (50, "the schedule spends much of its time where little is to be seen"),
    },
}
"""Each preset: field -> (value, reason)."""


def make_config(preset: str = "fast", **chosen: Any) -> Config:
    """The configuration of `preset` with the fields in `chosen` replaced.

    A budget in `chosen` replaces the preset's. What is no field of `Config` is an option of the
    network: channels=(64, 128) stands for net="unet:channels=64/128". Raises UserError, one
    sentence, for anything that does not fit."""
    if preset not in PRESETS:
        raise UserError(f"there is no preset called '{preset}'; there are: {', '.join(PRESETS)}")
    chosen = {FORMER.get(name, name): value for name, value in chosen.items()}
    values = {name: value for name, (value, _) in PRESETS[preset].items()}
    if any(chosen.get(budget) is not None for budget in ("minutes", "epochs", "steps")):
        values.pop("minutes")
    values |= {name: value for name, value in chosen.items() if name in Config.model_fields}
    options = {name: value for name, value in chosen.items() if name not in Config.model_fields}
    net = values.get("net", Config.model_fields["net"].default)
    return validated({"preset": preset, **values, "net": with_options(net, options)})


def with_options(net: Any, options: dict[str, Any]) -> Any:
    """A network's spec with these options, those that are None left out. Raises UserError."""
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


def as_command(config: Config, out: Path | str) -> str:
    """The command that begins, or goes on with, a run of this configuration in the folder `out`."""
    usual = make_config(config.preset) if config.preset in PRESETS else make_config()
    words = [
        "undiffuse",
        "train",
        *([] if config.preset == usual.preset == "fast" else ["--preset", config.preset]),
    ]
    for name in Config.model_fields:
        value, flag = getattr(config, name), name.replace("_", "-")
        # Without minutes there are epochs or steps, which take their place.
        if (
            name == "preset"
            or value == getattr(usual, name)
            or (name == "minutes" and value is None)
        ):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join([*words, "--out", str(out)])


def reasons(config: Config) -> dict[str, str]:
    """Why each field has its value: by the preset, by the user, or by the field's default."""
    found = {}
    preset = PRESETS.get(config.preset, {})
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if name in preset and preset[name][0] == value:
            found[name] = preset[name][1]
        elif value == field.default and (name not in preset or value is None):
            found[name] = (field.description or "").partition(" - ")[2]
        else:
            found[name] = "chosen for this run"
    return found


def differences(there: Config, asked: Config) -> list[str]:
    """`field: value there, value asked` for each field in which two configurations differ."""
    return [
        f"{name}: {getattr(there, name)} there, {getattr(asked, name)} asked"
        for name in Config.model_fields
        if getattr(there, name) != getattr(asked, name)
    ]
