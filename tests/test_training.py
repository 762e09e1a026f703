"""The training loop: its average, its bits, what it skips, what it shows the network; and the networks themselves."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as unpack
from safetensors.torch import save as pack
from torch import Tensor
from undiffuse.training.events import (
    Ended,
    Event,
    SetBack,
    Snapshot,
    Stepped,
    Uncompiled,
    Validated,
)

from conftest import write_idx
from undiffuse.base import engine, rng
from undiffuse.base.errors import UserError
from undiffuse.base.pixels import to_float
from undiffuse.data.batches import batch_indices
from undiffuse.nets import NETWORKS
from undiffuse.training import loop
from undiffuse.training.averages import ema_decay, ema_exponent
from undiffuse.training.clock import Clock, Cut, Decision, lr_factor, snapshot_steps
from undiffuse.training.experiment import (
    build_network,
    make_denoiser,
    prepare,
    show_pictures,
    total_steps,
)
from undiffuse.training.loop import MOST_CUTS, fit
from undiffuse.training.presets import PRESETS, make_config
from undiffuse.training.probes import QUICK_CALLS, quick_samples, score_plan
from undiffuse.training.state import new_state
from undiffuse.training.step import hide_labels

Tensors = dict[str, Tensor]


class Trainer:
    """A configuration made ready to train, without a run folder: call it for `fit`'s events."""

    def __init__(self, **fields: Any) -> None:
        self.config = make_config(**fields)
        self.training, self.held_out, self.facts = prepare(self.config)
        network = build_network(self.config, self.facts)
        show_pictures(network, self.training)
        self.denoiser = make_denoiser(network, self.config, self.facts)
        self.state = new_state(self.config, network)
        self.clock = Clock(
            lambda: 0.0, self.config.decay, steps=total_steps(self.config, len(self.training))
        )

    def __call__(self, **options: Any) -> Iterator[Event]:
        options = {"precision": "fp32", "compiled": self.config.compile == "on", **options}
        return fit(
            self.config,
            self.denoiser,
            self.state,
            self.training,
            self.held_out,
            self.clock,
            **options,
        )

    def tensors(self) -> Tensors:
        return {name: value.clone() for name, value in self.state.tensors().items()}


def equal(one: Tensors, other: Tensors) -> bool:
    """Whether all tensors are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(tensors: Tensors) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors.values())


def figures(events: list[Event]) -> list[Any]:
    """Events as values that can be compared, without the seconds."""
    plain = [dataclasses.asdict(event) for event in events]
    for event in plain:
        event.pop("seconds", None)
        if "images" in event:
            event["images"] = event["images"].tolist()
    return plain


# The average of the weights (trap 18)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_averages_exponent_is_the_published_one(width: float, gamma: float) -> None:
    """Karras et al. 2024 (arXiv:2312.02696), section 3.1."""
    assert ema_exponent(width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("width", [0.05, 0.10])
def test_the_average_is_a_power_function_of_the_step(width: float) -> None:
    """Step k of N weighs (k^(gamma + 1) - (k - 1)^(gamma + 1)) / N^(gamma + 1): almost k^gamma, and none for step 0."""
    gamma, steps = ema_exponent(width), 2000
    keeps = np.array([ema_decay(k, gamma) for k in range(1, steps + 1)])
    weights = (1 - keeps) * np.append(np.cumprod(keeps[:0:-1])[::-1], 1.0)
    k = np.arange(1, steps + 1)
    assert keeps[0] == 0  # nothing is left of the random weights
    assert weights == pytest.approx(
        (k ** (gamma + 1) - (k - 1) ** (gamma + 1)) / steps ** (gamma + 1), rel=1e-9
    )
    assert weights[steps // 2 :] == pytest.approx(
        (gamma + 1) / steps * (k / steps)[steps // 2 :] ** gamma, rel=0.02
    )
    spread = math.sqrt(weights @ k**2 - (weights @ k) ** 2) / steps
    assert spread == pytest.approx(width, rel=0.01)  # what the width means


def test_training_averages_its_weights_so(tiny: dict[str, Any]) -> None:
    trainer = Trainer(**tiny)
    gamma, steps = ema_exponent(trainer.config.ema), trainer.config.steps
    assert steps is not None
    expected = {
        name: torch.zeros_like(value) for name, value in trainer.state.average.state_dict().items()
    }
    for event in trainer():
        if isinstance(event, Stepped):
            weight = (event.step ** (gamma + 1) - (event.step - 1) ** (gamma + 1)) / steps ** (
                gamma + 1
            )
            for name, value in trainer.state.network.state_dict().items():
                expected[name] += weight * value
    for name, value in trainer.state.average.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


# Learning


def test_a_handful_of_images_is_learnt_by_heart(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """The best constant guess is the mean image, and its loss the variance; half of all noise levels show the image."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    fields = {
        "data": str(write_idx(tmp_path / "four", images)),
        "channels": (32, 64), "predict": "x0", "weighting": "uniform",
        "steps": 300, "batch_size": 32, "lr": 5e-3, "dropout": 0.0, "snapshots": 2,
    }  # fmt: skip
    losses = [event.loss for event in Trainer(**{**tiny, **fields})() if isinstance(event, Stepped)]
    best_constant = to_float(torch.from_numpy(images)).var(dim=0, correction=0).mean().item()
    assert np.mean(losses[-50:]) < best_constant / 3


def test_the_learning_rate_is_the_clocks_share_of_its_peak(tiny: dict[str, Any]) -> None:
    trainer = Trainer(**tiny)
    rates = [event.lr for event in trainer() if isinstance(event, Stepped)]
    assert rates == [
        trainer.config.lr * lr_factor(step, 2, [Decision(7, 12)]) for step in range(12)
    ]


def test_gradients_are_clipped(tiny: dict[str, Any]) -> None:
    trainer = Trainer(**{**tiny, "grad_clip": 1e-3, "optimizer": "adamw"})
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    trainer.state.optimizer.register_step_pre_hook(note)
    list(trainer())
    assert norms == pytest.approx([1e-3] * 12, rel=1e-3)


@pytest.mark.parametrize(
    ("budget", "steps"), [({"epochs": 2}, 15), ({"epochs": 0.01}, 1), ({"steps": 5}, 5)]
)
def test_epochs_and_steps_are_counted_exactly(
    tiny: dict[str, Any], budget: dict[str, Any], steps: int
) -> None:
    """Trap 19. 2 epochs of 61 images, 8 a step: 15.25. The optimiser's own count is the witness."""
    trainer = Trainer(**{**tiny, "steps": None, **budget})
    numbers = [event.step for event in trainer() if isinstance(event, Stepped)]
    counts = {int(value) for name, value in trainer.tensors().items() if name.endswith("/step")}
    assert numbers == list(range(1, steps + 1))
    assert counts == {steps}


def test_fewer_images_than_the_batch_train_anyway(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Of 3 images none is held out either, so there is no validation loss."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    trainer = Trainer(
        **{**tiny, "data": str(write_idx(tmp_path / "three", images)), "batch_size": 16, "steps": 3}
    )
    kinds = [type(event) for event in trainer()]
    assert kinds.count(Stepped) == 3
    assert Validated not in kinds
    assert kinds[-1] is Ended


# Bits


def test_the_same_seed_gives_the_same_bits(tiny: dict[str, Any]) -> None:
    def trained(seed: int, global_seed: int) -> Tensors:
        trainer = Trainer(**{**tiny, "seed": seed})
        torch.manual_seed(global_seed)  # what else the process drew does not matter
        list(trainer())
        return trainer.tensors()

    one = trained(seed=0, global_seed=1)
    assert equal(one, trained(seed=0, global_seed=2))
    other = trained(seed=1, global_seed=1)
    assert not any(
        torch.equal(one[name], other[name]) for name in one if name.endswith("conv_2.weight")
    )


@pytest.mark.parametrize("net", ["unet", "unet2d"])
def test_a_resumed_run_is_the_uninterrupted_one(tiny: dict[str, Any], net: str) -> None:
    """Stopped after steps 0, 1, 4, 5 and 11, going on from a file each time: the same weights, moments, events."""
    fields = {**tiny, "net": net, "conditional": True}
    whole = Trainer(**fields)
    expected = list(whole())

    events: list[Event] = []
    saved, step, looked = b"", 0, set[int]()
    for stop_at in (0, 1, 4, 5, 11, 99):
        part = Trainer(**fields)
        if saved:
            part.state.restore(unpack(saved), step)
        part.clock.decisions = [
            e.decision for e in events if hasattr(e, "decision") and hasattr(e.decision, "end")
        ]
        part.clock.outlook = whole.clock.outlook if events else None
        events += part(
            stop=lambda at=stop_at, part=part: part.state.step == at, looked=frozenset(looked)
        )
        looked = {event.step for event in events if isinstance(event, Snapshot)}
        saved, step = (
            pack({name: value.contiguous() for name, value in part.tensors().items()}),
            part.state.step,
        )
        assert step == min(stop_at, 12)
    assert equal(part.tensors(), whole.tensors())
    assert figures([e for e in events if e not in [Ended(s, False) for s in range(12)]]) == figures(
        expected
    )


# What is not finite


Plant = Callable[[pytest.MonkeyPatch, "Trainer", int, int], None]


def in_loss(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, step: int, times: int) -> None:
    """NaN noise, `times` times that step number `step` (from 1) is tried."""
    normal = rng.normal
    left = itertools.repeat(None, times)

    def poisoned(shape: Any, seed: int, purpose: str, *indices: int) -> Tensor:
        numbers = normal(shape, seed, purpose, *indices)
        return numbers * (
            math.nan
            if purpose == "noise" and indices[0] >= step - 1 and next(left, 0) is None
            else 1
        )

    monkeypatch.setattr(rng, "normal", poisoned)


def in_gradient(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, step: int, times: int) -> None:
    left = itertools.repeat(None, times)

    def poisoned(gradient: Tensor) -> Tensor:
        return (
            gradient / 0 if trainer.state.step >= step - 1 and next(left, 0) is None else gradient
        )

    next(trainer.state.network.parameters()).register_hook(poisoned)


def after_update(name: str) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, step: int, times: int) -> None:
        """One NaN in a tensor after the optimiser's step."""
        left, update = itertools.repeat(None, times), trainer.state.optimizer.step

        def poisoned() -> None:
            update()
            if trainer.state.step >= step - 1 and next(left, 0) is None:
                trainer.state.tensors()[name].view(-1)[-1] = math.nan

        monkeypatch.setattr(trainer.state.optimizer, "step", poisoned)

    return plant


PLANTS: dict[str, tuple[Plant, str]] = {
    "loss": (in_loss, "loss"),
    "gradient": (in_gradient, "gradient"),
    "weight": (after_update("weights/out.bias"), "weight or moment"),
    "average": (after_update("ema/out.bias"), "weight or moment"),
    "moment": (after_update("optimizer/out.bias/exp_avg"), "weight or moment"),
}


@pytest.mark.parametrize("step", range(1, 13))
@pytest.mark.parametrize("kind", PLANTS)
def test_a_number_that_is_not_finite_sets_training_back(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], kind: str, step: int
) -> None:
    """Caught in its step; from the last kept state on, all is as if only the learning rate had been halved there."""
    monkeypatch.setattr(loop, "KEPT_EVERY", 4)
    plant, what = PLANTS[kind]
    trainer, events, kept = Trainer(**tiny), [], {}
    kept[0] = trainer.tensors()
    plant(monkeypatch, trainer, step, 1)
    for event in trainer():
        events.append(event)
        assert finite(trainer.tensors())
        if isinstance(event, SetBack):
            assert equal(trainer.tensors(), kept[event.step])
        kept[trainer.state.step] = trainer.tensors()
    back = (step - 1) // 4 * 4
    assert [e for e in events if isinstance(e, SetBack)] == [
        SetBack(back, step, Cut(back), f"its {what} was not finite")
    ]

    expected = Trainer(**tiny)
    expected.clock.cuts = [Cut(back)]
    monkeypatch.undo()
    wanted = list(expected())
    assert equal(trainer.tensors(), expected.tensors())
    last = events[next(i for i, e in enumerate(events) if isinstance(e, SetBack)) + 1 :]
    assert figures([e for e in last if isinstance(e, Stepped | Snapshot)]) == figures(
        [e for e in wanted if isinstance(e, Stepped | Snapshot) and e.step > back]
    )


@pytest.mark.parametrize("kind", PLANTS)
def test_training_that_goes_wrong_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], kind: str
) -> None:
    """After MOST_CUTS halvings of the learning rate, and with finite weights."""
    trainer = Trainer(**{**tiny, "steps": 40})
    PLANTS[kind][0](monkeypatch, trainer, 6, MOST_CUTS)
    *_, last = trainer()
    assert last == Ended(40, finished=True)
    assert trainer.clock.cuts == [Cut(0)] * MOST_CUTS
    monkeypatch.undo()

    trainer, events = Trainer(**{**tiny, "steps": 40}), []
    PLANTS[kind][0](monkeypatch, trainer, 6, MOST_CUTS + 1)
    with pytest.raises(
        UserError,
        match=rf"step 6 was not finite, though .* halved {MOST_CUTS} times.*--lr than 0\.000125",
    ):
        events.extend(trainer())
    assert finite(trainer.tensors())


def test_a_learning_rate_that_is_far_too_high_is_given_up(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"diverged.*--lr"):
        list(Trainer(**{**tiny, "lr": 1e30, "steps": 40})())


# Labels


def test_labels_are_hidden_from_the_configured_share() -> None:
    config, labels = make_config(label_dropout=0.1), torch.arange(10).repeat(1000)
    shown = hide_labels(labels, 10, config, step=3)
    hidden = shown == 10
    assert hidden.float().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 10_000))
    assert torch.equal(shown[~hidden], labels[~hidden])
    assert torch.equal(shown, hide_labels(labels, 10, config, step=3))
    assert not torch.equal(hidden, hide_labels(labels, 10, config, step=4) == 10)


@pytest.mark.parametrize(("share", "hidden"), [(0.0, 0), (0.5, 48), (0.999999, 96)])
def test_the_network_is_shown_each_images_label_or_none(
    tiny: dict[str, Any], share: float, hidden: int
) -> None:
    trainer, seen = Trainer(**{**tiny, "conditional": True, "label_dropout": share}), []
    trainer.state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    list(trainer())
    assert trainer.training.labels is not None
    rows = [batch_indices(61, 8, step, trainer.config.seed) for step in range(12)]
    labels, shown = trainer.training.labels[torch.cat(rows)], torch.cat(seen)
    assert ((shown == labels) | (shown == 10)).all()
    assert (shown == 10).sum().item() == pytest.approx(
        hidden, abs=20 if share == 0.5 else 0
    )  # 4 standard deviations


def test_a_run_without_labels_shows_none(tiny: dict[str, Any]) -> None:
    trainer, seen = Trainer(**tiny), []
    trainer.state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    list(trainer())
    assert seen == [None] * 12


# Validation and snapshots


def test_validation_and_snapshots_use_the_same_noise_each_time(tiny: dict[str, Any]) -> None:
    """With weights that do not move, nothing else may change."""
    events = list(Trainer(**{**tiny, "lr": 1e-30})())
    validations = [(event.loss, event.levels) for event in events if isinstance(event, Validated)]
    pictures = [event.images for event in events if isinstance(event, Snapshot)]
    assert len(validations) == len(pictures) == 4
    assert all(one == validations[0] for one in validations)
    assert all(torch.equal(one, pictures[0]) for one in pictures)
    assert not torch.equal(pictures[0][0], pictures[0][1])


def test_the_validation_loss_is_the_mean_of_its_levels(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """8 levels of 20 of the 160 images held out of 3200, from noise to image."""
    images = np.random.default_rng(0).integers(0, 256, (3200, 4, 4), dtype=np.uint8)
    trainer = Trainer(**{**tiny, "data": str(write_idx(tmp_path / "many", images)), "steps": 1})
    validated = next(event for event in trainer() if isinstance(event, Validated))
    assert len(validated.levels) == 8
    assert validated.loss == pytest.approx(
        np.mean([loss for _, loss in validated.levels]), rel=1e-5
    )
    assert sorted({log_snr for log_snr, _ in validated.levels}, reverse=True) == [
        s for s, _ in validated.levels
    ]


# The networks


def network(
    net: str, shape: tuple[int, int, int], classes: int = 0, **options: Any
) -> torch.nn.Module:
    """A small network with random weights also where training begins with zeros."""
    options = {
        "channels": (8, 16),
        "blocks": (1, 1),
        "attention": (False, True),
        "heads": 2,
        "dropout": 0.0,
    } | options
    torch.manual_seed(0)
    built: torch.nn.Module = NETWORKS[net](shape=shape, classes=classes, **options)
    for parameter in built.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return built


def inputs(shape: tuple[int, int, int], classes: int, count: int = 3) -> list[Tensor | None]:
    torch.manual_seed(1)
    label = torch.arange(count) % (classes + 1) if classes else None
    return [torch.randn(count, *shape), torch.linspace(-5, 5, count), label]


@pytest.mark.parametrize(
    "shape", [(1, 7, 9), (1, 28, 28), (3, 32, 32), (3, 64, 64)], ids=lambda s: "x".join(map(str, s))
)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("net", list(NETWORKS))
def test_a_network_serves_images_of_any_size(
    net: str, classes: int, shape: tuple[int, int, int]
) -> None:
    """Each image's output is its own, and every parameter, every pixel, the noise level and the label count."""
    built = network(net, shape, classes)
    x, log_snr, label = inputs(shape, classes)
    assert x is not None
    assert log_snr is not None
    x.requires_grad_()
    out = built(x, log_snr, label)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    for i in range(3):
        alone = built(x[i : i + 1], log_snr[i : i + 1], None if label is None else label[i : i + 1])
        torch.testing.assert_close(alone[0], out[i], rtol=1e-3, atol=1e-4)

    out.square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    assert [
        name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()
    ] == []
    assert not torch.allclose(built(x, log_snr + 1, label), out, atol=1e-4)
    if label is not None:
        assert not torch.allclose(built(x, log_snr, (label + 1) % 4), out, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "options", "sentence"),
    [
        ("unet", {"heads": 3}, "16 channels can't be shared between 3 heads"),
        ("unet2d", {"blocks": (1, 2)}, "same number of blocks at every level"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(
    net: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        network(net, (1, 8, 8), **options)


@pytest.mark.skipif(not engine.has_bf16(), reason="this processor has no bfloat16 arithmetic")
@pytest.mark.parametrize("count", [1, 8])
def test_bf16_is_close_to_fp32(count: int) -> None:
    """Trap 20: some shapes of convolution have given wrong results. These are the default network's."""
    built = network("unet", (1, 28, 28), channels=(64, 128), blocks=(1, 3))
    x, log_snr, _ = inputs((1, 28, 28), 0, count)

    def gradients(precision: str) -> tuple[Tensor, list[Tensor]]:
        with engine.arithmetic(precision):
            out = built(x, log_snr, None)
        assert out.dtype == torch.float32
        return out.detach(), list(
            torch.autograd.grad(out.square().mean(), list(built.parameters()))
        )

    (exact, exact_gradients), (out, found) = gradients("fp32"), gradients("bf16")
    assert (out - exact).norm() < 0.02 * exact.norm()
    for one, other, (name, _) in zip(exact_gradients, found, built.named_parameters(), strict=True):
        assert (one - other).norm() < 0.05 * one.norm(), name


def test_a_compiler_that_fails_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    """Unless compiling was insisted on."""

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no such compiler\nand a page more")

    plain, trainer = Trainer(**tiny), Trainer(**{**tiny, "compile": "auto"})
    list(plain())
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    assert [event for event in trainer(compiled=True) if isinstance(event, Uncompiled)] == [
        Uncompiled(0, "no such compiler")
    ]
    assert equal(trainer.tensors(), plain.tensors())
    with pytest.raises(UserError, match=r"no such compiler.*--compile off"):
        list(Trainer(**{**tiny, "compile": "on"})())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.detach(),
        lambda x: 2 * x - x.detach(),
        lambda x: x + 0 * (x - x.detach()).abs().sqrt(),
    ],
    ids=["none", "twice", "not a number"],
)
def test_a_compiler_that_errs_without_a_word_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], wrong: Callable[[Tensor], Tensor]
) -> None:
    """Its loss is right, and its gradient of what comes before the trunk is lost, or another one."""
    fields = {**tiny, "dropout": 0.0}
    plain, trainer = Trainer(**fields), Trainer(**{**fields, "compile": "auto"})
    list(plain())
    before = {name: p.clone() for name, p in trainer.state.network.named_parameters()}

    def miscompiled(function: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def call(*inputs: Any) -> Tensor:
            hook = trainer.state.network.trunk.register_forward_pre_hook(
                lambda _, args: (wrong(args[0]), *args[1:])
            )
            value = function(*inputs)
            hook.remove()
            return value

        return call

    monkeypatch.setattr(torch, "compile", miscompiled)
    events = trainer(compiled=True)
    faults = []
    for event in events:
        if isinstance(event, Uncompiled):
            faults.append(event.reason)
            assert all(
                torch.equal(p, before[name]) for name, p in trainer.state.network.named_parameters()
            )
    assert len(faults) == 1
    assert re.fullmatch(r"its gradient of \w[\w.]* is wrong", faults[0])
    assert equal(plain.tensors(), trainer.tensors())


@pytest.mark.slow
@pytest.mark.skipif(engine.compiler() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("preset", PRESETS)
def test_every_presets_gradients_are_compiled_rightly(preset: str) -> None:
    """At its own size: torch 2.13 errs for large tensors only."""
    trainer = Trainer(
        preset=preset,
        compile="on",
        minutes=None,
        steps=1,
        subset=1000,
        groups=0,
        snapshots=2,
        snapshot_images=1,
    )
    precision = "bf16" if engine.has_bf16() else "fp32"
    assert [event.step for event in trainer(precision=precision) if isinstance(event, Stepped)] == [
        1
    ]


@pytest.mark.slow
@pytest.mark.skipif(engine.compiler() is None, reason="there is no C++ compiler")
def test_the_compiled_network_learns_what_the_eager_one_does(tiny: dict[str, Any]) -> None:
    fields = {**tiny, "dropout": 0.0, "conditional": True}
    eager, compiled = (
        [
            event.loss
            for event in Trainer(**{**fields, "compile": how})()
            if isinstance(event, Stepped)
        ]
        for how in ("off", "on")
    )
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_bf16_trains_as_fp32_does(tiny: dict[str, Any]) -> None:
    losses = {
        precision: [e.loss for e in Trainer(**tiny)(precision=precision) if isinstance(e, Stepped)]
        for precision in ("fp32", "bf16")
    }
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


# Scores


@pytest.mark.parametrize("steps", [1, 300, 1500, 4700, 30_000])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_scores_take_no_more_than_their_share(steps: int, share: float) -> None:
    """A training image costs three forward passes, an image of a score at most QUICK_CALLS."""
    config = make_config(steps=steps, score_share=share)
    counts, planned = (500, 1000, 2000), snapshot_steps(steps, config.snapshots)
    n, at = score_plan(steps, planned, config, counts)
    cost = (
        (len(at) + 1) * n * QUICK_CALLS
    )  # one more, where the run ends at another step than was foreseen
    assert cost <= share * 3 * steps * config.batch_size
    assert set(at) <= set(planned) - {0}
    if at:
        assert at[-1] == steps
        assert n in counts
    else:
        assert share * 2 * steps * config.batch_size < 2 * 500 * QUICK_CALLS


def test_ten_minutes_are_scored_a_few_times() -> None:
    n, at = score_plan(3000, snapshot_steps(3000, 12), make_config(), (500, 1000, 2000))
    assert (n, len(at)) == (500, 3)


def test_quick_samples_take_few_calls(tiny: dict[str, Any]) -> None:
    trainer, called = (
        Trainer(**{**tiny, "conditional": True, "guidance": 2.0, "sample_calls": 24}),
        [],
    )
    trainer.state.network.register_forward_pre_hook(
        lambda _, arguments: called.append(len(arguments[0]))
    )
    images = torch.cat(
        list(quick_samples(trainer.denoiser, trainer.config, trainer.training, 5, 3))
    )
    assert images.shape == (5, 1, 8, 8)
    assert sum(called) == 5 * QUICK_CALLS


def test_a_long_run_is_scored_at_every_snapshot() -> None:
    n, at = score_plan(
        200_000, snapshot_steps(200_000, 12), make_config(steps=200_000), (500, 1000, 2000)
    )
    assert (n, len(at)) == (2000, 11)
