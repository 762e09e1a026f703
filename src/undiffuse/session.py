"""One session of training: begins or resumes a run folder, and writes into it what `fit` yields.

A run is what the same command makes, in however many sessions. A session ends when the budget is used up, or on
Ctrl-C or SIGTERM, after which the same command goes on.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse import data, features, figures, images, machine
from undiffuse.clock import Clock, Cut, Decision, Outlook
from undiffuse.config import Config, differences
from undiffuse.errors import UserError
from undiffuse.files import LARGEST, LARGEST_HEADER, cache_folder
from undiffuse.groups import k_means, k_means_within
from undiffuse.run import DataFacts, Run, build_network, make_denoiser, shapes
from undiffuse.training import (
    Decided,
    Ended,
    Event,
    Scored,
    SetBack,
    Snapshot,
    Stepped,
    Uncompiled,
    Validated,
    fit,
    new_state,
    rehearse,
    stepped_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undiffuse.data import Dataset

SAVE_SECONDS = 60.0


class Stopped(BaseException):
    """A signal ended the session before the run was finished; the run can go on. signal: its number.

    A BaseException, like KeyboardInterrupt, since it may be raised inside of the compiler, which catches others."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


@dataclass(frozen=True)
class Began:
    """The session's first event: a new run, or one resumed at `step` of which `seconds` were already spent."""

    step: int
    seconds: float
    facts: DataFacts
    parameters: int
    precision: str
    compiled: bool
    notes: list[str]


def prepare(config: Config, dataset: Dataset | None = None) -> tuple[Dataset, Dataset, DataFacts]:
    """(training set, held-out set, their facts) of a configuration, from its whole data set, which is loaded unless it
    is given. Raises UserError for unusable data."""
    dataset = dataset if dataset is not None else data.load(config.data, config.size)
    if config.subset is not None:
        dataset = data.subset(dataset, config.subset, config.seed)
    if config.conditional and not dataset.classes:
        raise UserError(f"--conditional needs class labels, and '{config.data}' has none")
    training, held_out = data.split(dataset, config.seed)
    digest = hashlib.sha256()
    for part in (training, held_out):
        digest.update(part.images.numpy().tobytes())
        if part.labels is not None:
            digest.update(part.labels.numpy().tobytes())
    return (
        training,
        held_out,
        DataFacts(dataset.name, dataset.shape, dataset.classes, len(training), len(held_out), digest.hexdigest()),
    )


def trained_on(run: Run, whole: Dataset) -> tuple[Dataset, Dataset]:
    """(training set, held-out set) of a run, from its whole data set. Raises UserError where these are other images than those of its training."""
    training, held_out, facts = prepare(run.about().config, whole)
    refuse_other_images(run, facts)
    return training, held_out


def grouped(
    config: Config, training: Dataset, held_out: Dataset, facts: DataFacts
) -> tuple[Dataset, Dataset, DataFacts]:
    """(training set, held-out set, their facts): with groups for labels, where the configuration asks for them and there are enough
    images; else as they are."""
    if not config.groups:
        return training, held_out, facts
    everything = torch.cat([training.images, held_out.images])
    class_of: tuple[int, ...] = ()
    if config.conditional:
        assert training.labels is not None
        assert held_out.labels is not None
        label = torch.cat([training.labels, held_out.labels])
        group, class_of = k_means_within(everything, label, len(facts.classes), config.groups, config.seed)
    else:
        group = k_means(everything, config.groups, config.seed)
    own, others = group[: len(training)], group[len(training) :]
    sizes = torch.bincount(own, minlength=len(class_of) or int(group.max()) + 1)
    if len(sizes) < 2 or len(sizes) == len(set(class_of)):  # they would say nothing, or nothing that the classes do not
        return training, held_out, facts
    facts = replace(facts, groups=tuple(sizes.tolist()), class_of=class_of)
    return replace(training, labels=own), replace(held_out, labels=others), facts


def show_pictures(network: nn.Module, training: Dataset) -> None:
    """Fill the network's `pictures`, where it has some, with the mean images of the labels that it is told."""
    pictures = getattr(network, "pictures", None)
    if pictures is not None:
        pictures.copy_(data.mean_images(training, len(pictures) - 1))


def refuse_too_large(checkpoint: dict[str, Tensor]) -> None:
    """UserError for tensors of a checkpoint that would be larger than what is read back."""
    size = sum(value.nbytes for value in checkpoint.values())
    if size > LARGEST - LARGEST_HEADER:
        raise UserError(
            f"the network's checkpoints would take {size / 2**30:.1f} GiB, and {LARGEST / 2**30:.0f} is the most; take fewer --channels, "
            "a smaller --size, or fewer classes"
        )


def refuse_other_images(run: Run, facts: DataFacts, what_to_do: str = "bring those back") -> None:
    """UserError where a run was trained on other images than those of `facts`."""
    about = run.about()
    if not about.facts.same_images(facts):
        raise UserError(f"{run.path} was trained on other images than '{about.config.data}' holds now; {what_to_do}")


def refuse_other_groups(run: Run, facts: DataFacts, what_to_do: str) -> None:
    """UserError where a run that is to be gone on with, or replayed, was told other groups than those found now."""
    there = run.about().facts
    if (len(there.groups), there.class_of) != (len(facts.groups), facts.class_of):
        raise UserError(
            f"{run.path} was begun with {len(there.groups)} groups of similar images, and {len(facts.groups)} are found now; {what_to_do}"
        )


def open_run(path: Path, config: Config, facts: DataFacts, replay_of: Path | None) -> Run:
    """The run folder at `path`, begun if it isn't there. Raises UserError where another run is there."""
    run, source = Run(path), str(replay_of.resolve()) if replay_of else None
    if not run.exists():
        run.create(config, facts, source)
        return run
    there = run.about()
    different = differences(there.config, config)
    if different:
        raise UserError(
            f"{path} holds a run with another configuration ({'; '.join(different)}); begin a new one with another --out"
        )
    if there.replay_of != source:
        is_what = f"replays {there.replay_of}" if there.replay_of else "is no replay"
        raise UserError(f"{path} holds a run that {is_what}; begin a new one with another --out")
    refuse_other_images(run, facts, "begin a new run with another --out")
    return run


def replayed_clock(source: Run) -> list[dict[str, Any]]:
    """The clock's records of a finished run, for a replay to copy. UserError where the run is unfinished."""
    if not source.finished():
        raise UserError(f"{source.path} is unfinished, so there is no whole run to replay; finish it first")
    return source.events("clock")


def decided(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the clock's records say, as fields of `Clock`."""
    outlooks = [Outlook(**r["outlook"]) for r in records if "outlook" in r]
    return {
        "decisions": [Decision(**r["decision"]) for r in records if "decision" in r],
        "outlook": outlooks[-1] if outlooks else None,
        "cuts": [Cut(**r["cut"]) for r in records if "cut" in r],
    }


def last_seconds(events: list[dict[str, Any]]) -> float:
    """How long the last of them took; 0 where there is none."""
    return float(events[-1]["seconds"]) if events else 0.0


class Signals:
    """Within: Ctrl-C and SIGTERM raise Stopped while there is nothing to save, and are remembered once there is. All but the first
    change nothing."""

    def __init__(self) -> None:
        self.something_to_save = False
        self.received = 0
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: object) -> None:
        first, self.received = not self.received, self.received or number
        if first and not self.something_to_save:
            raise Stopped(number)


def train_session(
    config: Config, path: Path, *, replay: Path | None = None, started: float | None = None
) -> Iterator[Began | Event]:
    """Train the run at `path` to its end, or on from where it is; yields `Began`, then `fit`'s events, each already
    written down. Nothing is yielded for a run that is already finished.

    started: time.monotonic() at the start of the process. Raises UserError for anything that a user must mend, and
    Stopped after a signal, when all is saved."""
    started = time.monotonic() if started is None else started
    copied = replayed_clock(Run(replay)) if replay else []
    rehearse(config)
    whole = data.load(config.data, config.size)
    labelled, held_out, facts = prepare(config, whole)
    training, held_out, facts = grouped(config, labelled, held_out, facts)
    if replay:
        refuse_other_images(Run(replay), facts)
        refuse_other_groups(Run(replay), facts, "so a replay would be another run; begin a new one in its place")
    scorer = features.scorer(whole) if config.score_share > 0 else None
    steps = total_steps(config, len(training))
    precision, compiled, notes = machine.resolve(config, steps and steps * config.batch_size, cache_folder())
    network = build_network(config, facts)
    show_pictures(network, training)
    denoiser = make_denoiser(network, config, facts)
    state = new_state(config, network)
    expected = stepped_tensors(config, network)
    refuse_too_large(expected)
    run = open_run(path, config, facts, replay)
    if run.finished():
        return
    refuse_other_groups(run, facts, "begin a new run with another --out")
    if not (run.path / "data.png").is_file():
        run.write("data.png", figures.examples(labelled, facts.classes))

    with run.locked():
        spent = max((event["time"] for event in run.log()), default=0.0)
        if run.checkpoint_path.is_file():
            tensors, step = run.load_tensors(run.checkpoint_path)
            if shapes(tensors) != shapes(expected if step else state.tensors()):
                raise UserError(f"{run.checkpoint_path} does not fit the network of {path}/config.json")
            state.restore(tensors, step)

        def rewind() -> None:
            run.rewind_log(state.step)
            recorded = run.events("clock")
            for record in copied:
                if record not in recorded:
                    run.append(record)

        def save() -> None:
            run.sync_log()  # the clock's decisions must not be lost where the weights that follow from them are kept
            run.save_tensors(run.checkpoint_path, state.tensors(), state.step)

        def elapsed() -> float:
            return spent + time.monotonic() - started

        rewind()

        earlier = run.events("session") or (Run(replay).events("session") if replay else [])
        bits = {**machine.facts(), "precision": precision, "compiled": compiled}
        if compiled:
            bits["compiler"] = machine.compiler_version()
        changed = [key for key, value in bits.items() if earlier and earlier[-1]["machine"].get(key) != value]
        if changed:
            notes.append(
                f"not the machine or versions of before ({', '.join(changed)}): the result will not be the same to the bit"
            )
        snapshots = run.events("snapshot")
        clock = Clock(
            elapsed,
            config.decay,
            budget=None if config.minutes is None else 60 * config.minutes,
            steps=steps,
            replayed=replay is not None,
            snapshot_seconds=last_seconds(snapshots),
            score_seconds=last_seconds(run.events("score")),
            **decided(run.events("clock")),
        )
        run.append({"event": "session", "step": state.step, "time": elapsed(), "machine": bits})
        parameters = sum(p.numel() for p in network.parameters())
        yield Began(state.step, spent, facts, parameters, precision, compiled, notes)

        saved = time.monotonic()
        looked = {event["step"] for event in snapshots}
        signals = Signals()
        try:
            with signals:
                events = fit(
                    config, denoiser, state, training, held_out, clock,
                    precision=precision, compiled=compiled, scorer=scorer, looked=looked, stop=lambda: signals.received != 0,
                )  # fmt: skip
                for event in events:
                    signals.something_to_save |= isinstance(event, Stepped)
                    if isinstance(event, SetBack):
                        save()  # before the log: if it is killed between, the same step goes wrong once more
                        rewind()
                    write_down(run, event, elapsed(), facts)
                    due = time.monotonic() - saved > SAVE_SECONDS
                    if config.checkpoint_every:
                        due = event.step % config.checkpoint_every == 0
                    if isinstance(event, Ended) or (isinstance(event, Stepped) and due):
                        save()
                        saved = time.monotonic()
                    if isinstance(event, Ended) and event.finished:
                        run.save_tensors(run.model_path, dict(state.average.state_dict()), state.step)
                        figures.loss_curve(run)
                        figures.timeline(run)
                        run.append({"event": "finished", "step": event.step, "time": elapsed()})
                    yield event
                if signals.received and not run.finished():
                    raise Stopped(signals.received)
        finally:
            if signals.received and not signals.something_to_save:  # nothing is lost but time, which counts
                run.append({"event": "stopped", "step": state.step, "time": round(elapsed(), 3)})


def write_down(run: Run, event: Event, seconds: float, facts: DataFacts) -> None:
    """The event, as a line of the log or a picture."""
    line: dict[str, Any] = {"event": "", "step": event.step, "time": round(seconds, 3)}
    match event:
        case Decided(decision=decision):
            kind = "decision" if isinstance(decision, Decision) else "outlook"
            line |= {"event": "clock", kind: asdict(decision)}
        case Stepped():
            line |= {"event": "step", "loss": event.loss, "lr": event.lr}
        case SetBack():
            line |= {"event": "clock", "cut": asdict(event.cut), "of": event.of, "reason": event.reason}
        case Uncompiled():
            line |= {"event": "uncompiled", "reason": event.reason.encode(errors="replace").decode()[:1000]}
        case Validated():
            line |= {"event": "validation", "loss": event.loss, "levels": event.levels}
        case Scored():
            line |= {
                "event": "score",
                "frechet": event.frechet,
                "floor": event.floor,
                "n": event.n,
                "seconds": event.seconds,
            }
        case Snapshot():
            columns = images.columns_for(len(event.images), len(facts.classes))
            name = f"samples/step_{event.step:06d}.png"
            run.write(name, images.png_bytes(images.grid(event.images, columns)))
            line |= {"event": "snapshot", "file": name, "seconds": event.seconds}
        case Ended():
            line |= {"event": "stopped"}
            if event.finished:
                return
    run.append(line)


def total_steps(config: Config, training: int) -> int | None:
    """The number of steps that --steps or --epochs asks for; None with a budget of minutes."""
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return max(1, round(config.epochs * training / config.batch_size))
    return None
