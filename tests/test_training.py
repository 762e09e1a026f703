"""The training loop: its average, its bits, what it rolls back, what it shows the network.

And the networks themselves."""

from __future__ import annotations

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

from conftest import write_idx
from helpers_runs import configured, spoil_noise, without_time
from undiffuse.base import compiler as compilers
from undiffuse.base import engine
from undiffuse.base.engine import Engine
from undiffuse.base.errors import UserError
from undiffuse.base.pixels import to_float
from undiffuse.data.batches import batch_indices
from undiffuse.nets import NETWORKS
from undiffuse.training import loop
from undiffuse.training.averages import ema_decay, ema_exponent
from undiffuse.training.clock import Clock, lr_factor, snapshot_steps
from undiffuse.training.experiment import Experiment, hide, make_experiment
from undiffuse.training.loop import MOST_ROLLBACKS, fit
from undiffuse.training.presets import PRESETS, make_config
from undiffuse.training.probes import QUICK_CALLS, quality_plan, quick_samples
from undiffuse.training.records import (
    CompileFallback,
    Cooldown,
    Decision,
    Finished,
    Record,
    Rollback,
    Snapshot,
    StepTaken,
    Stopped,
    Validation,
)
from undiffuse.training.step import SHARDS

Tensors = dict[str, Tensor]
EAGER, COMPILED = Engine(), Engine(compiled=True)


class Trainer:
    """An experiment with a clock that stands still. Call it for `fit`'s records."""

    def __init__(self, **fields: Any) -> None:
        self.experiment = make_experiment(configured(**fields))
        self.config, self.state = self.experiment.config, self.experiment.state
        self.clock = Clock(lambda: 0.0, self.config.decay, steps=self.experiment.steps)

    def __call__(self, engine: Engine = EAGER, **options: Any) -> Iterator[Record]:
        return fit(self.experiment, self.clock, engine, **options)

    def tensors(self) -> Tensors:
        return {name: value.clone() for name, value in self.state.tensors().items()}


def of(kind: type, records: Any) -> list[Any]:
    """The records of a kind."""
    return [record for record in records if isinstance(record, kind)]


def equal(one: Tensors, other: Tensors) -> bool:
    """Whether all tensors are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(tensors: Tensors) -> bool:
    return all(bool(value.isfinite().all()) for value in tensors.values())


def comparable(records: list[Record]) -> list[Any]:
    """Records without the seconds, with their images."""
    images = [record.images if isinstance(record, Snapshot) else None for record in records]
    return [
        (without_time(record), None if image is None else image.tolist())
        for record, image in zip(records, images, strict=True)
    ]


# The average of the weights (trap 18)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_averages_exponent_is_the_published_one(width: float, gamma: float) -> None:
    """Karras et al. 2024 (arXiv:2312.02696), section 3.1."""
    assert ema_exponent(width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("width", [0.05, 0.10])
def test_the_average_is_a_power_function_of_the_step(width: float) -> None:
    """Step k of N weighs (k^(gamma + 1) - (k - 1)^(gamma + 1)) / N^(gamma + 1).

    That is almost k^gamma. Step 0 weighs nothing."""
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
    for record in trainer():
        if isinstance(record, StepTaken):
            grown = record.step ** (gamma + 1) - (record.step - 1) ** (gamma + 1)
            for name, value in trainer.state.network.state_dict().items():
                expected[name] += grown / steps ** (gamma + 1) * value
    for name, value in trainer.state.average.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


# Learning


def test_a_handful_of_images_is_learnt_by_heart(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """The best constant x_0_hat is the mean image, and its loss the variance.

    Half of all noise levels show the image."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    fields = {
        "data": str(write_idx(tmp_path / "four", images)),
        "channels": (32, 64), "predict": "x0", "weighting": "uniform",
        "steps": 300, "batch_size": 32, "lr": 5e-3, "dropout": 0.0, "snapshots": 2,
    }  # fmt: skip
    losses = [taken.loss for taken in of(StepTaken, Trainer(**{**tiny, **fields})())]
    best_constant = to_float(torch.from_numpy(images)).var(dim=0, correction=0).mean().item()
    assert np.mean(losses[-50:]) < best_constant / 3


def test_the_learning_rate_is_the_clocks_share_of_its_peak(tiny: dict[str, Any]) -> None:
    trainer = Trainer(**tiny)
    rates = [taken.lr for taken in of(StepTaken, trainer())]
    assert rates == [
        trainer.config.lr * lr_factor(step, 2, [Cooldown(0, 0.0, 7, 12)]) for step in range(12)
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
    numbers = [taken.step for taken in of(StepTaken, trainer())]
    counts = {int(value) for name, value in trainer.tensors().items() if name.endswith("/step")}
    assert numbers == list(range(1, steps + 1))
    assert counts == {steps}


def test_fewer_images_than_the_batch_train_anyway(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Of 3 images none is held out either, so there is no validation loss."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    trainer = Trainer(
        **{**tiny, "data": str(write_idx(tmp_path / "three", images)), "batch_size": 16, "steps": 3}
    )
    kinds = [type(record) for record in trainer()]
    assert kinds.count(StepTaken) == 3
    assert Validation not in kinds
    assert kinds[-1] is Finished


# Bits


def test_the_same_seed_gives_the_same_bits(tiny: dict[str, Any]) -> None:
    def trained(seed: int, global_seed: int) -> Tensors:
        trainer = Trainer(**{**tiny, "seed": seed})
        torch.manual_seed(global_seed)  # what else the process sampled does not matter
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
    """Stopped after steps 0, 1, 4, 5 and 11, and resumed from a file each time.

    It has the same weights, moments and records."""
    fields = {**tiny, "net": net, "attention": (False, True), "conditional": True}
    whole = Trainer(**fields)
    expected = list(whole())

    records: list[Record] = []
    saved, step, done = b"", 0, set[int]()
    for stop_at in (0, 1, 4, 5, 11, 99):
        part = Trainer(**fields)
        if saved:
            part.state.restore(unpack(saved), step)
        part.clock.read(of(Decision, records))
        records += part(
            stop=lambda at=stop_at, part=part: part.state.step == at, snapshots_done=done
        )
        done = {snapshot.step for snapshot in of(Snapshot, records)}
        saved, step = (
            pack({name: value.contiguous() for name, value in part.tensors().items()}),
            part.state.step,
        )
        assert step == min(stop_at, 12)
    assert equal(part.tensors(), whole.tensors())
    kept = [record for record in records if not isinstance(record, Stopped)]
    assert len(records) - len(kept) == 5
    assert comparable(kept) == comparable(expected)


def same_batch(one: Any, other: Any) -> bool:
    """Whether two batches are the same to the bit."""
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


def test_a_batch_is_the_same_whatever_was_asked_for_before(tiny: dict[str, Any]) -> None:
    """Earlier and later batches, in any order, twice, of other seeds too; also after training.

    61 images, 8 a step: step 7 is in two epochs, and 100 in the 14th."""
    fields, steps = {**tiny, "conditional": True}, (0, 1, 6, 7, 8, 15, 100)

    def fresh(**others: Any) -> Experiment:
        return make_experiment(configured(**{**fields, **others}))

    expected = {step: fresh().batch(step) for step in steps}
    assert not any(
        same_batch(expected[a], expected[b]) for a, b in itertools.combinations(steps, 2)
    )
    own, other = fresh(), fresh(seed=1)
    for step in (*steps, *reversed(steps), 100, 100, 0, 7):
        torch.manual_seed(step)  # what else the process sampled does not matter
        assert not same_batch(other.batch(step), expected[step])
        assert same_batch(own.batch(step), expected[step])
    trainer = Trainer(**fields)
    for record in trainer():
        if isinstance(record, StepTaken) and record.step in expected:
            assert same_batch(trainer.experiment.batch(record.step), expected[record.step])
    assert all(same_batch(trainer.experiment.batch(step), expected[step]) for step in steps)


# What is not finite


Plant = Callable[[pytest.MonkeyPatch, "Trainer", int, int], None]


def in_loss(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, step: int, times: int) -> None:
    """NaN noise, `times` times that step number `step` (from 1) is tried."""
    left = itertools.repeat(None, times)
    spoil_noise(monkeypatch, lambda tried: tried >= step and next(left, 0) is None)


def in_gradient(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, step: int, times: int) -> None:
    left = itertools.repeat(None, SHARDS * times)  # each shard of the batch has one

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


@pytest.mark.parametrize(("kind", "step"), list(zip(itertools.cycle(PLANTS), range(1, 13))))
def test_a_number_that_is_not_finite_rolls_training_back(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], kind: str, step: int
) -> None:
    """Caught in its step. From the last kept state on, all is as with half of the learning rate."""
    monkeypatch.setattr(loop, "KEPT_EVERY", 4)
    plant, what = PLANTS[kind]
    trainer, records, kept = Trainer(**tiny), list[Record](), {}
    kept[0] = trainer.tensors()
    plant(monkeypatch, trainer, step, 1)
    for record in trainer():
        records.append(record)
        assert finite(trainer.tensors())
        if isinstance(record, Rollback):
            assert equal(trainer.tensors(), kept[record.step])
        kept[trainer.state.step] = trainer.tensors()
    back = (step - 1) // 4 * 4
    rollback = Rollback(back, 0.0, step, f"its {what} was not finite")
    assert of(Rollback, records) == [rollback]

    expected = Trainer(**tiny)
    expected.clock.rollbacks = [rollback]
    monkeypatch.undo()
    wanted = [record for record in expected() if record.step > back]
    assert equal(trainer.tensors(), expected.tensors())
    after = records[records.index(rollback) + 1 :]
    assert comparable(of(StepTaken | Snapshot, after)) == comparable(
        of(StepTaken | Snapshot, wanted)
    )


@pytest.mark.parametrize("kind", ["gradient", "weight"])
def test_training_that_goes_wrong_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any], kind: str
) -> None:
    """After MOST_ROLLBACKS halvings of the learning rate, and with finite weights."""
    trainer = Trainer(**{**tiny, "steps": 40})
    PLANTS[kind][0](monkeypatch, trainer, 6, MOST_ROLLBACKS)
    *_, last = trainer()
    assert last == Finished(40, 0.0)
    assert [rollback.step for rollback in trainer.clock.rollbacks] == [0] * MOST_ROLLBACKS
    monkeypatch.undo()

    trainer, records = Trainer(**{**tiny, "steps": 40}), []
    PLANTS[kind][0](monkeypatch, trainer, 6, MOST_ROLLBACKS + 1)
    with pytest.raises(
        UserError,
        match=rf"step 6 was not finite, though .* halved {MOST_ROLLBACKS} times"
        r".*lr=0\.000125 or less",
    ):
        records.extend(trainer())
    assert finite(trainer.tensors())


def test_a_learning_rate_that_is_far_too_high_is_given_up(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"diverged.*lr="):
        list(Trainer(**{**tiny, "lr": 1e30, "steps": 40})())


# Conditions


def test_the_configured_share_of_conditions_is_hidden() -> None:
    config, classes = make_config(condition_dropout=0.1), torch.arange(10).repeat(1000)
    shown = hide(classes, 10, config, step=3)
    hidden = shown == 10
    assert hidden.float().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 10_000))
    assert torch.equal(shown[~hidden], classes[~hidden])
    assert torch.equal(shown, hide(classes, 10, config, step=3))
    assert not torch.equal(hidden, hide(classes, 10, config, step=4) == 10)


@pytest.mark.parametrize(("share", "hidden"), [(0.0, 0), (0.5, 48), (0.999999, 96)])
def test_the_network_is_shown_each_images_class_or_unconditional(
    tiny: dict[str, Any], share: float, hidden: int
) -> None:
    trainer, seen = Trainer(**{**tiny, "conditional": True, "condition_dropout": share}), []
    trainer.state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    list(trainer())
    own = trainer.experiment.training.dataset.labels
    assert own is not None
    rows = [batch_indices(61, 8, step, trainer.config.seed) for step in range(12)]
    classes, shown = own[torch.cat(rows)], torch.cat(seen)
    assert ((shown == classes) | (shown == 10)).all()
    assert (shown == 10).sum().item() == pytest.approx(
        hidden, abs=20 if share == 0.5 else 0
    )  # 4 standard deviations


def test_a_run_without_conditions_shows_none(tiny: dict[str, Any]) -> None:
    trainer, seen = Trainer(**tiny), []
    trainer.state.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    list(trainer())
    assert seen == [None] * (12 * SHARDS)


# Validation and snapshots


def test_validation_and_snapshots_use_the_same_noise_each_time(tiny: dict[str, Any]) -> None:
    """With weights that do not move, nothing else may change."""
    records = list(Trainer(**{**tiny, "lr": 1e-30})())
    validations = [(found.loss, found.levels) for found in of(Validation, records)]
    pictures = [snapshot.images for snapshot in of(Snapshot, records)]
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
    first = next(record for record in trainer() if isinstance(record, Validation))
    assert len(first.levels) == 8
    assert first.loss == pytest.approx(np.mean([loss for _, loss in first.levels]), rel=1e-5)
    levels = [log_snr for log_snr, _ in first.levels]
    assert sorted(set(levels), reverse=True) == levels


# The networks


SMALL = {
    "channels": (8, 16),
    "blocks": (1, 1),
    "attention": (False, True),
    "heads": 2,
    "dropout": 0.0,
}


def network(
    net: str, shape: tuple[int, int, int], conditions: int = 0, **options: Any
) -> torch.nn.Module:
    """A small network with random weights also where training begins with zeros.

    It has those of the options SMALL that it knows."""
    known = NETWORKS.defaults(net)
    options = {name: value for name, value in SMALL.items() if name in known} | options
    torch.manual_seed(0)
    built: torch.nn.Module = NETWORKS[net](shape=shape, conditions=conditions, **options)
    for parameter in built.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return built


def inputs(shape: tuple[int, int, int], conditions: int, count: int = 3) -> list[Tensor | None]:
    torch.manual_seed(1)
    condition = torch.arange(count) % (conditions + 1) if conditions else None
    return [torch.randn(count, *shape), torch.linspace(-5, 5, count), condition]


@pytest.mark.parametrize(
    ("shape", "conditions"),
    [((1, 7, 9), 0), ((1, 28, 28), 3), ((3, 32, 32), 0), ((3, 64, 64), 3)],
    ids=["1x7x9", "1x28x28, 3 conditions", "3x32x32", "3x64x64, 3 conditions"],
)
@pytest.mark.parametrize("net", list(NETWORKS))
def test_a_network_serves_images_of_any_size(
    net: str, shape: tuple[int, int, int], conditions: int
) -> None:
    """Each image's output is its own.

    Every parameter, every pixel, the noise level and the condition count."""
    built = network(net, shape, conditions)
    x, log_snr, condition = inputs(shape, conditions)
    assert x is not None
    assert log_snr is not None
    x.requires_grad_()
    out = built(x, log_snr, condition)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    for i in range(3):
        own = None if condition is None else condition[i : i + 1]
        alone = built(x[i : i + 1], log_snr[i : i + 1], own)
        torch.testing.assert_close(alone[0], out[i], rtol=1e-3, atol=1e-4)

    out.square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    unused = [name for name, p in built.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    assert not torch.allclose(built(x, log_snr + 1, condition), out, atol=1e-4)
    if condition is not None:
        assert not torch.allclose(built(x, log_snr, (condition + 1) % 4), out, atol=1e-4)


@pytest.mark.parametrize(
    ("net", "options", "sentence"),
    [
        ("unet", {"heads": 3}, "16 channels, which 3 heads do not divide"),
        ("unet2d", {"blocks": (1, 2)}, "same number of blocks at every level"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(
    net: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        network(net, (1, 8, 8), **options)


@pytest.mark.skipif(not engine.has_bf16(), reason="this CPU has no bfloat16 arithmetic")
@pytest.mark.parametrize("count", [1, 8])
def test_bf16_is_close_to_fp32(count: int) -> None:
    """Trap 20: some shapes of convolution have given wrong results.

    These are the default network's."""
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
        # Gradients of gains are sums of many terms that almost cancel.
        assert (one - other).norm() < (0.1 if one.ndim == 1 else 0.05) * one.norm(), name


def test_a_compiler_that_fails_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    """Unless compiling was insisted on."""

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no such compiler\nand a page more")

    plain, trainer = Trainer(**tiny), Trainer(**tiny)
    list(plain())
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    assert of(CompileFallback, trainer(COMPILED)) == [CompileFallback(0, 0.0, "no such compiler")]
    assert equal(trainer.tensors(), plain.tensors())
    with pytest.raises(UserError, match=r"no such compiler.*compile=off"):
        list(Trainer(**tiny)(COMPILED, insist=True))


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
    """Its loss is right; its gradient of what comes before the trunk is lost, or another one."""
    fields = {**tiny, "dropout": 0.0}
    plain, trainer = Trainer(**fields), Trainer(**fields)
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
    faults = []
    for record in trainer(COMPILED):
        if isinstance(record, CompileFallback):
            faults.append(record.reason)
            assert all(
                torch.equal(p, before[name]) for name, p in trainer.state.network.named_parameters()
            )
    assert len(faults) == 1
    assert re.fullmatch(r"its gradient of \w[\w.]* is wrong", faults[0])
    assert equal(plain.tensors(), trainer.tensors())


@pytest.mark.slow
@pytest.mark.skipif(compilers.compiler() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("preset", PRESETS)
def test_every_presets_gradients_are_compiled_rightly(preset: str) -> None:
    """At its own size: torch 2.13 errs for large tensors only."""
    trainer = Trainer(
        preset=preset,
        minutes=None,
        steps=1,
        subset=1000,
        clusters=0,
        snapshots=2,
        snapshot_images=1,
    )
    compiled = Engine("bf16" if engine.has_bf16() else "fp32", compiled=True)
    assert [taken.step for taken in of(StepTaken, trainer(compiled, insist=True))] == [1]


@pytest.mark.slow
@pytest.mark.skipif(compilers.compiler() is None, reason="there is no C++ compiler")
def test_the_compiled_network_learns_what_the_eager_one_does(tiny: dict[str, Any]) -> None:
    fields = {**tiny, "dropout": 0.0, "conditional": True}
    eager, compiled = (
        [taken.loss for taken in of(StepTaken, Trainer(**fields)(how, insist=True))]
        for how in (EAGER, COMPILED)
    )
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_bf16_trains_as_fp32_does(tiny: dict[str, Any]) -> None:
    losses = {
        precision: [taken.loss for taken in of(StepTaken, Trainer(**tiny)(Engine(precision)))]
        for precision in ("fp32", "bf16")
    }
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


# Quality


@pytest.mark.parametrize("steps", [1, 300, 1500, 4700, 30_000])
def test_quality_takes_no_more_than_its_share(steps: int) -> None:
    """A training image costs three forward passes, an image of quality at most QUICK_CALLS."""
    for share in (0.01, 0.05, 0.2):
        config = make_config(steps=steps, quality_share=share)
        counts, planned = (500, 1000, 2000), snapshot_steps(steps, config.snapshots)
        n, at = quality_plan(steps, planned, config, counts)
        # One more, where the run ends at another step than was foreseen.
        cost = (len(at) + 1) * n * QUICK_CALLS
        assert cost <= share * 3 * steps * config.batch_size
        assert set(at) <= set(planned) - {0}
        if at:
            assert at[-1] == steps
            assert n in counts
        else:
            assert share * 2 * steps * config.batch_size < 2 * 500 * QUICK_CALLS


def test_the_quality_of_ten_minutes_is_measured_a_few_times() -> None:
    n, at = quality_plan(3000, snapshot_steps(3000, 12), make_config(), (500, 1000, 2000))
    assert (n, len(at)) == (500, 3)


def test_quick_samples_take_few_calls(tiny: dict[str, Any]) -> None:
    fields = {**tiny, "conditional": True, "guidance": 2.0, "sample_calls": 24}
    trainer, called = Trainer(**fields), []
    trainer.state.network.register_forward_pre_hook(
        lambda _, arguments: called.append(len(arguments[0]))
    )
    experiment = trainer.experiment
    images = torch.cat(list(quick_samples(experiment.denoiser, experiment, 5, 3)))
    assert images.shape == (5, 1, 8, 8)
    assert 5 * (QUICK_CALLS - 2) < sum(called) <= 5 * QUICK_CALLS  # a guided step takes two


def test_the_quality_of_a_long_run_is_measured_at_every_snapshot() -> None:
    n, at = quality_plan(
        200_000, snapshot_steps(200_000, 12), make_config(steps=200_000), (500, 1000, 2000)
    )
    assert (n, len(at)) == (2000, 11)
