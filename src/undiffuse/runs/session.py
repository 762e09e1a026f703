"""One session of training: begins or resumes a run folder, and writes into it what `fit` yields.

A run is what the same command makes, in however many sessions. A session ends when the budget is used up, or on
Ctrl-C or SIGTERM, after which the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.base import engine
from undiffuse.base.cache import cache_folder
from undiffuse.base.errors import UserError
from undiffuse.base.images import columns_for, image_grid, png_bytes
from undiffuse.data.loading import load_dataset
from undiffuse.measuring.scorer import scorer_for
from undiffuse.runs import figures
from undiffuse.runs.folder import Run
from undiffuse.runs.signals import Signals, Stopped
from undiffuse.training.clock import Clock, Cut, Decision, Outlook
from undiffuse.training.config import Config
from undiffuse.training.events import Decided, Ended, Event, Scored, SetBack, Snapshot, Stepped, Uncompiled, Validated
from undiffuse.training.experiment import (
    DataFacts,
    build_network,
    grouped,
    make_denoiser,
    prepare,
    refuse_too_large,
    shapes,
    show_pictures,
    total_steps,
)
from undiffuse.training.loop import fit
from undiffuse.training.presets import differences
from undiffuse.training.rehearsal import rehearse
from undiffuse.training.state import new_state, stepped_tensors

if TYPE_CHECKING:
    from undiffuse.data.dataset import Dataset

SAVE_SECONDS = 60.0


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


def trained_on(run: Run, whole: Dataset) -> tuple[Dataset, Dataset]:
    """(training set, held-out set) of a run, from its whole data set. Raises UserError where these are other images than those of its training."""
    training, held_out, facts = prepare(run.about().config, whole)
    refuse_other_images(run, facts)
    return training, held_out


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
    whole = load_dataset(config.data, config.size)
    labelled, held_out, facts = prepare(config, whole)
    training, held_out, facts = grouped(config, labelled, held_out, facts)
    if replay:
        refuse_other_images(Run(replay), facts)
        refuse_other_groups(Run(replay), facts, "so a replay would be another run; begin a new one in its place")
    scorer = scorer_for(whole) if config.score_share > 0 else None
    steps = total_steps(config, len(training))
    precision, compiled, notes = engine.resolve(config, steps and steps * config.batch_size, cache_folder())
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
        bits = {**engine.facts(), "precision": precision, "compiled": compiled}
        if compiled:
            bits["compiler"] = engine.compiler_version()
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
            columns = columns_for(len(event.images), len(facts.classes))
            name = f"samples/step_{event.step:06d}.png"
            run.write(name, png_bytes(image_grid(event.images, columns)))
            line |= {"event": "snapshot", "file": name, "seconds": event.seconds}
        case Ended():
            line |= {"event": "stopped"}
            if event.finished:
                return
    run.append(line)
