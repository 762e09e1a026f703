"""Training: `fit`, one visible loop that yields what happens as events.

Who reads the events (the console, the run folder) decides what to do with them; the loop knows neither. All of its
randomness is a function of (seed, step), so a state at step n is the same whichever sessions led there.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from undiffuse import data, machine, rng
from undiffuse.clock import Clock, Cut, Decision, Outlook, lr_factor, snapshot_steps
from undiffuse.denoiser import Denoiser
from undiffuse.errors import UserError
from undiffuse.objective import TIMES, WEIGHTINGS, Problem, draw_times, loss, regression
from undiffuse.optimizers import OPTIMIZERS
from undiffuse.sampling import draw, draw_batches, steps_within
from undiffuse.schedule import SCHEDULES, log_snr

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.config import Config
    from undiffuse.data import Dataset
    from undiffuse.denoiser import Network
    from undiffuse.features import Scorer

    BatchLoss: TypeAlias = Callable[[Problem, Tensor | None], Tensor]


VALIDATION_IMAGES = 512
QUICK_CALLS = 8  # of the network, at most, for a sample that is scored: scores are compared with one another only
LEVELS = 8  # of noise, for which the validation loss is given
KEPT_EVERY = 50  # steps: how far training is set back at most when numbers go wrong
MOST_CUTS = 5
MISCOMPILED = 0.3  # relative difference of a weight's compiled gradient; rounding to bfloat16 makes 0.03


@dataclass
class State:
    """What training changes: the network, its average over the steps, the optimiser, and the number of steps taken."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that going on needs, by name."""
        found = {f"weights/{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"ema/{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return {name: value.detach() for name, value in found.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """The inverse of `tensors`, for those of the same network."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        def laid_out_like(parameter: Tensor, moment: Tensor) -> Tensor:
            # Files hold contiguous tensors; the fused optimiser walks parameter and moments in memory order.
            return torch.empty_like(parameter).copy_(moment) if moment.ndim else moment.clone()

        self.network.load_state_dict(part("weights/"))
        self.average.load_state_dict(part("ema/"))
        self.optimizer.state.clear()
        moments = part("optimizer/")
        for name, parameter in self.network.named_parameters():
            own = {key.removeprefix(f"{name}/"): value for key, value in moments.items() if key.startswith(f"{name}/")}
            if own:
                self.optimizer.state[parameter] = {key: laid_out_like(parameter, value) for key, value in own.items()}
        self.step = step

    def copy(self) -> tuple[dict[str, Tensor], int]:
        """What `restore` takes, of now: later steps do not change it."""
        return {name: value.clone() for name, value in self.tensors().items()}, self.step

    def is_finite(self) -> bool:
        return bool(torch.stack(torch._foreach_norm(list(self.tensors().values()))).isfinite().all())


def new_state(config: Config, network: nn.Module) -> State:
    return State(
        network, copy.deepcopy(network).eval().requires_grad_(False), OPTIMIZERS[config.optimizer](network, config)
    )


def stepped_tensors(config: Config, network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint after a step, with the names and shapes that each has: of a step on a copy, with gradients of zero."""
    state = new_state(config, copy.deepcopy(network))
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return state.tensors()


# --- Events ---


@dataclass(frozen=True)
class Decided:
    """The clock decided; it acts after this was read."""

    step: int
    decision: Decision | Outlook


@dataclass(frozen=True)
class Stepped:
    """One optimiser step, which was number `step` (from 1). end: the last step, as far as that is known."""

    step: int
    loss: float
    lr: float
    seconds: float
    end: int | None


@dataclass(frozen=True)
class SetBack:
    """Step number `of` (from 1) went wrong, for the reason given: training is as it was after `step` steps, and goes on from there with
    half of the learning rate."""

    step: int
    of: int
    cut: Cut
    reason: str


@dataclass(frozen=True)
class Uncompiled:
    """torch.compile failed, for the reason given; the same arithmetic goes on without it, slower."""

    step: int
    reason: str


@dataclass(frozen=True)
class Validated:
    """Held-out loss of the averaged weights, at the same noise each time; by noise level: (log-SNR, loss) pairs."""

    step: int
    loss: float
    levels: list[tuple[float, float]]


@dataclass(frozen=True)
class Snapshot:
    """Samples from the same noise each time, uint8 (N, C, H, W). seconds: that they and the validation took."""

    step: int
    images: Tensor
    seconds: float


@dataclass(frozen=True)
class Scored:
    """The Frechet distance of n quick samples of the averaged weights to the training images, and its floor: that of n
    real images that were not trained on. seconds: that it took."""

    step: int
    frechet: float
    floor: float
    n: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """The last event. finished: the budget is used up, rather than training was asked to stop."""

    step: int
    finished: bool


Event = Decided | Stepped | SetBack | Uncompiled | Validated | Snapshot | Scored | Ended


# --- Before the loop ---


def rehearse(config: Config) -> None:
    """Call every chosen function once, on one pixel: UserError for parameters that make no diffusion model.

    So that they are refused before anything is written, and not at the first snapshot."""
    specs = (
        f"schedule {config.schedule}, prediction {config.predict}, weighting {config.weighting}, times {config.times}"
    )
    try:
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        alpha, sigma = SCHEDULES[config.schedule](t)
        if not ((alpha[0], sigma[0]) == (1, 0) and (log_snr(alpha, sigma).diff() < 0).all()):
            raise UserError(
                f"schedule '{config.schedule}' does not fall from the data to noise; give its parameters other values"
            )
        denoiser = Denoiser(lambda x, log_snr, label: 0 * x, config.schedule, config.predict, (1, 1, 1))
        times = draw_times(TIMES[config.times], 100, rng.stream(0, "rehearsal"), stratified=True, steps=config.chain)
        x_0 = torch.ones(len(times), 1, 1, 1)
        problem = regression(denoiser, WEIGHTINGS[config.weighting], x_0, x_0, times)
        possible = all(part.isfinite().all() for part in problem) and bool((problem.weight >= 0).all())
    except (ArithmeticError, RuntimeError) as error:
        raise UserError(f"{specs}: these can't be computed together ({error}); give other parameters") from error
    if not possible:
        raise UserError(f"{specs}: the loss would not be finite and positive; give other parameters")
    sampler = {"sampler": config.sampler, "grid": config.grid}
    draw(denoiser, [0], steps=steps_within(config.sample_calls, denoiser, **sampler), **sampler)


# --- A step ---


def problem_of(denoiser: Denoiser, config: Config, training: Dataset, step: int) -> tuple[Problem, Tensor | None]:
    """What step number `step` (from 0) learns from: a batch of images x_0, each noised to a time of its own, and their labels (B,), where
    the network knows some. A function of (seed, step) alone."""
    rows = data.batch_indices(len(training.images), config.batch_size, step, config.seed)
    x_0 = data.to_float(training.images[rows])
    noise = rng.normal(x_0.shape, config.seed, "noise", step)
    generator = rng.stream(config.seed, "times", step)
    t = draw_times(TIMES[config.times], len(rows), generator, stratified=config.stratified, steps=config.chain)
    labels = training.labels if denoiser.labels else None
    label = None if labels is None else hide_labels(labels[rows], denoiser.labels, config, step)
    return regression(denoiser, WEIGHTINGS[config.weighting], x_0, noise, t), label


def descend(
    batch_loss: BatchLoss, state: State, problem: Problem, label: Tensor | None, lr: float, config: Config
) -> tuple[float, str | None]:
    """One step down the gradient of (6), by the optimiser, and of the average: (the loss, what of it is not finite, if anything).
    `state` is spoilt where something is not."""
    torch.manual_seed(int(rng.stream(config.seed, "dropout", state.step).integers(2**63)))
    parameters: list[Tensor] = list(state.network.parameters())
    average: list[Tensor] = list(state.average.parameters())
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    value = batch_loss(problem, label)
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
    wrong = next((what for what, x in (("loss", value), ("gradient", norm)) if not x.isfinite()), None)
    if wrong is None:
        state.optimizer.step()
        decay = ema_decay(state.step + 1, ema_exponent(config.ema))
        torch._foreach_lerp_(average, parameters, 1 - decay)
        wrong = None if state.is_finite() else "weight or moment"
    state.optimizer.zero_grad()
    state.step += 1
    return value.item(), wrong


# --- The loop ---


def fit(
    config: Config,
    denoiser: Denoiser,
    state: State,
    training: Dataset,
    held_out: Dataset,
    clock: Clock,
    *,
    precision: str,
    compiled: bool,
    scorer: Scorer | None = None,
    looked: Iterable[int] = (),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Train `state` from where it is to the clock's end, or until stop() is true; yields events.

    denoiser: around state.network; its schedule and prediction define the loss. looked: the steps of the snapshots
    that an earlier session took. scorer: scores samples at some of the snapshots.

    Where a loss, a gradient or a weight is not finite, training is set back by up to KEPT_EVERY steps and goes on with half of the
    learning rate, MOST_CUTS times; then UserError is raised. (Not further than to where this session began: a run that was also
    resumed in between may be set back to another step than one that was not.) `state` is finite whenever an event is read."""
    weighting, distribution = WEIGHTINGS[config.weighting], TIMES[config.times]
    averaged = replace(denoiser, network=in_precision(state.average, precision))

    def batch_loss(problem: Problem, label: Tensor | None) -> Tensor:
        with machine.arithmetic(precision):
            return loss(state.network, problem, label).mean()

    def snapshots() -> list[int]:
        if clock.outlook is None:
            return [0]
        # None before the outlook: the steps were not known then, and a replay must do the same.
        planned = snapshot_steps(clock.outlook.steps, config.snapshots)
        return [s for s in planned if s == 0 or s >= clock.outlook.step]

    def scores() -> tuple[int, list[int]]:
        if scorer is None or clock.outlook is None:
            return 0, []
        return score_plan(clock.outlook.steps, snapshots(), config, tuple(scorer.floors))

    def look() -> Iterator[Event]:
        """Validation loss, samples and score of the averaged weights; nothing, where it was asked to stop meanwhile."""
        begin, found = time.monotonic(), list[Event]()
        if len(held_out):
            found.append(validate(averaged, weighting, distribution, config, held_out, state.step))
        images = snapshot(averaged, config, state.step)
        clock.snapshot_seconds = time.monotonic() - begin
        n, steps = scores()
        if scorer is not None and (state.step in steps or (steps and state.step == clock.end)):
            begin = time.monotonic()
            parts = list(
                itertools.takewhile(lambda _: not stop(), quick_samples(averaged, config, training, n, state.step))
            )
            if sum(map(len, parts)) < n:
                return
            frechet = scorer(torch.cat(parts))
            clock.score_seconds = time.monotonic() - begin
            found.append(Scored(state.step, frechet, scorer.floors[n], n, clock.score_seconds))
        seen.add(state.step)
        yield from found
        yield Snapshot(state.step, images, clock.snapshot_seconds)  # last: it marks all of this as done

    clock.scored = scores()[1]
    seen = set(looked)
    good = state.copy()
    first = True  # of this session: it compiles, so its time says nothing of the others'
    last = time.monotonic()
    while True:
        step = state.step
        if step in snapshots() and step not in seen and step != clock.end:
            yield from look()
            if step not in seen:
                yield Ended(step, finished=False)
                return
            last = time.monotonic()
        if outlook := clock.look_ahead(step, snapshots()):
            clock.scored = scores()[1]
            yield Decided(step, outlook)
        if decision := clock.decide(step, snapshots()):
            yield Decided(step, decision)
        if clock.end is not None and step >= clock.end:
            break
        if stop():
            yield Ended(step, finished=False)
            return

        problem, label = problem_of(denoiser, config, training, step)
        if first and compiled:
            quick = torch.compile(batch_loss, dynamic=False)
            fault = fault_of(quick, batch_loss, state.network, problem, label, gradients=config.dropout == 0)
            if fault is None:
                batch_loss = quick
            elif config.compile == "on":
                raise UserError(
                    f"torch.compile can't be used here ({fault}); train with --compile off, and another --out"
                )
            else:
                yield Uncompiled(step, fault)

        lr = config.lr * lr_factor(step, config.warmup, clock.decisions, clock.cuts)
        value, wrong = descend(batch_loss, state, problem, label, lr, config)
        now = time.monotonic()
        seconds, last = now - last, now
        if not first:
            clock.durations.append(seconds)
        first = False
        if wrong is None:
            if state.step % KEPT_EVERY == 0:
                good = state.copy()
            yield Stepped(state.step, value, lr, seconds, clock.end)
            continue
        if len(clock.cuts) >= MOST_CUTS:
            state.restore(*good)
            raise UserError(
                f"training diverged: the {wrong} of step {step + 1} was not finite, though the learning rate was halved {MOST_CUTS} times "
                f"before; begin again, in another --out, with a lower --lr than {config.lr / 2**MOST_CUTS:g}, or with --precision fp32"
            )
        state.restore(*good)
        seen = {s for s in seen if s <= state.step}
        yield SetBack(state.step, step + 1, clock.set_back(state.step), f"its {wrong} was not finite")

    if state.step not in seen:
        yield from look()
    yield Ended(state.step, finished=state.step in seen)


def fault_of(
    quick: BatchLoss,
    plain: BatchLoss,
    network: nn.Module,
    problem: Problem,
    label: Tensor | None,
    *,
    gradients: bool = True,
) -> str | None:
    """Why the compiled loss `quick` can't be used in place of `plain`, None where it can: it fails, or it has another gradient. Compilers
    err without a word: torch 2.13 dropped the gradient of all that comes before an upsampling.

    Compared at weights moved at random, since many gradients are zero at the start. gradients: whether they can be compared;
    not with dropout, which differs."""
    # diffusers caches a few constant functions; the warning is for its authors, not for the user of this package.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    generator = torch.Generator().manual_seed(0)
    kept = {name: p.detach().clone() for name, p in network.named_parameters()}

    def gradient(batch_loss: BatchLoss) -> dict[str, Tensor]:
        batch_loss(problem, label).backward()
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        network.zero_grad()
        return found

    try:
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
        ours = gradient(quick)
        theirs = gradient(plain) if gradients else {}
    except Exception as error:  # whatever a compiler may raise
        return next(filter(None, str(error).splitlines()), type(error).__name__)
    finally:
        network.zero_grad()
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(kept[name])
    for name, expected in theirs.items():
        found = ours.get(name, torch.zeros_like(expected))
        alike = bool((found - expected).norm() <= MISCOMPILED * expected.norm())  # False for one that is not a number
        if expected.ndim > 1 and expected.isfinite().all() and not alike:
            return f"its gradient of {name} is wrong"
    return None


def in_precision(network: Network, precision: str) -> Network:
    """The network, computing in `precision` ("bf16" or "fp32"); its input and output are float32 either way."""

    def call(x: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        with machine.arithmetic(precision):
            out = network(x, log_snr, label)
        return out.float()

    return call


def hide_labels(label: Tensor, no_label: int, config: Config, step: int) -> Tensor:
    """The labels, each replaced by `no_label` with probability config.label_dropout."""
    hidden = rng.stream(config.seed, "label dropout", step).random(len(label)) < config.label_dropout
    return label.masked_fill(torch.from_numpy(hidden), no_label)


@functools.cache  # it is asked for at every step
def ema_exponent(width: float) -> float:
    """gamma of the power-function average whose width is `width` of the run: Karras et al. 2024 (arXiv:2312.02696), (126).

    The width is sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), which falls with gamma: solved by bisection."""
    low, high = 0.0, 1e6
    for _ in range(100):
        gamma = (low + high) / 2
        wide = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) > width
        low, high = (gamma, high) if wide else (low, gamma)
    return (low + high) / 2


def ema_decay(step: int, gamma: float) -> float:
    """How much of the average step `step` (from 1) keeps: Karras et al. 2024 (arXiv:2312.02696), (127). 0 at step 1."""
    return math.pow(1 - 1 / step, gamma + 1)


@torch.no_grad()
def validate(
    denoiser: Denoiser,
    weighting: Callable[[Tensor], Tensor],
    distribution: Callable[[Tensor], Tensor],
    config: Config,
    held_out: Dataset,
    step: int,
) -> Validated:
    """The loss (6) on held-out images, at times that cover evenly what training draws from; the same ones at every call."""
    part = data.random_part(held_out, VALIDATION_IMAGES, config.seed)
    x_0, n = data.to_float(part.images), len(part)
    noise = rng.normal(x_0.shape, config.seed, "validation noise")
    t = draw_times(distribution, n, rng.stream(config.seed, "validation times"), stratified=True, steps=config.chain)
    problem = regression(denoiser, weighting, x_0, noise, t)
    label = part.labels if denoiser.labels else None
    losses = torch.cat(
        [
            loss(denoiser.network, Problem(*(x[rows] for x in problem)), None if label is None else label[rows])
            for rows in torch.split(torch.arange(n), config.batch_size)
        ]
    )
    bins = [rows for rows in t.argsort().tensor_split(LEVELS) if len(rows)]
    levels = [(problem.log_snr[rows].mean().item(), losses[rows].mean().item()) for rows in bins]
    return Validated(step, losses.mean().item(), levels)


def snapshot(denoiser: Denoiser, config: Config, step: int) -> Tensor:
    """Samples by the run's own sampler, uint8 (N, C, H, W); classes, where there are some, cycle."""
    count, drawing = config.snapshot_images, config.drawing(step, denoiser.told)
    label = cycle_labels(count, len(denoiser.classes)) if denoiser.classes else None
    steps = steps_within(config.sample_calls, denoiser, **drawing)
    return data.to_uint8(draw(denoiser, range(count), label=label, steps=steps, seed=config.seed, **drawing))


def score_plan(steps: int, snapshots: Sequence[int], config: Config, counts: Sequence[int]) -> tuple[int, list[int]]:
    """(images of a score, the snapshots at which there is one), so that all scores take at most config.score_share of the
    arithmetic of a run of `steps` steps: as often as possible, then of as many images as possible, from `counts`.

    A forward pass with its backward pass is counted as two: less than it takes, so that the share is not exceeded."""
    images = config.score_share * 2 * steps * config.batch_size / min(config.sample_calls, QUICK_CALLS)
    after = [step for step in snapshots if step > 0]
    if not after or not counts or images < 2 * min(counts):
        return 0, []
    often = min(
        len(after), int(images // min(counts)) - 1
    )  # one more, as the run may end at another step than foreseen
    n = max(count for count in counts if (often + 1) * count <= images)
    return n, after[len(after) - 1 :: -max(1, math.ceil(len(after) / often))][::-1]


def quick_samples(denoiser: Denoiser, config: Config, training: Dataset, n: int, step: int) -> Iterator[Tensor]:
    """n images for a score by the run's own sampler in few steps, in batches uint8 (B, C, H, W); classes, where there are some, at random from
    the training set's."""
    drawing = config.drawing(step, denoiser.told)
    steps = steps_within(min(config.sample_calls, QUICK_CALLS), denoiser, **drawing)
    label = data.random_labels(training, n, config.seed, "score labels") if denoiser.classes else None
    if label is not None and denoiser.groups:
        label = torch.tensor(denoiser.class_of)[label]
    yield from map(data.to_uint8, draw_batches(denoiser, n, label=label, steps=steps, seed=config.seed, **drawing))


def cycle_labels(count: int, classes: int) -> Tensor:
    return torch.arange(count) % classes
