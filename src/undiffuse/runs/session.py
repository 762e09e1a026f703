"""One session of training: it begins or resumes a run folder and writes the loop's records to it.

A run may take several sessions. A session ends when the budget is used up, or after Ctrl-C or
SIGTERM. Then the same command starts the next session, which resumes the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from undiffuse.base.compiler import compiler_version
from undiffuse.base.engine import Engine, machine_facts
from undiffuse.base.errors import UserError
from undiffuse.base.files import remove_left_over
from undiffuse.base.images import columns_for, image_grid, png_bytes
from undiffuse.base.tensors import save_tensors
from undiffuse.measuring.scorer import scorer_for
from undiffuse.runs import figures
from undiffuse.runs.averages import keep_average
from undiffuse.runs.fitting import (
    ELSEWHERE,
    adopted,
    decisions_of,
    open_run,
    refuse_other_clusters,
    refuse_other_images,
    replayed_decisions,
    started_from,
)
from undiffuse.runs.folder import Run
from undiffuse.runs.longer import BEFORE_DECAY, START, copy_start
from undiffuse.runs.signals import Interrupted, Signals
from undiffuse.training.clock import Clock
from undiffuse.training.config import Config
from undiffuse.training.experiment import (
    Experiment,
    load_configured,
    make_experiment,
    shapes,
)
from undiffuse.training.loop import fit
from undiffuse.training.options import SessionOptions, resolve
from undiffuse.training.records import (
    Cooldown,
    Decision,
    Finished,
    PictureFailed,
    Quality,
    Record,
    Rollback,
    SessionStarted,
    Snapshot,
    StepTaken,
    Stopped,
    of_kind,
)
from undiffuse.training.state import WIDE

if TYPE_CHECKING:
    from undiffuse.measuring.scorer import Scorer

SAVE_SECONDS = 60.0  # between checkpoints, unless checkpoint_every is given


@torch.inference_mode(False)  # whatever the caller's modes are, and they stay as they are
@torch.enable_grad()
def train_session(
    config: Config,
    path: Path,
    options: SessionOptions = SessionOptions(),
    *,
    replay: Path | None = None,
    longer: Path | None = None,
    started: float | None = None,
) -> Iterator[Record]:
    """Train the run at `path` until it is finished. Yields records, each written to the log first.

    A run that exists is resumed. The first record is `SessionStarted`. A finished run yields
    nothing.

    replay: a finished run to repeat step by step. longer: a finished run from whose state this one
    begins. started: time.monotonic() at the start of the process. Raises UserError where the run
    cannot be trained, and Interrupted after a signal, when everything is saved."""
    started = time.monotonic() if started is None else started
    decisions = replayed_decisions(Run(replay)) if replay else []
    whole = load_configured(config)
    config, why = adopted(config, [Run(each) for each in (path, replay, longer) if each])
    experiment = make_experiment(config, whole)
    config, why = experiment.config, why | experiment.decided
    facts, conditioning = experiment.facts, experiment.conditioning
    if replay:
        refuse_other_images(Run(replay), facts)
        remedy = "so a replay would be another run; begin a new one in its place"
        refuse_other_clusters(Run(replay), conditioning, remedy)
    scorer = scorer_for(whole) if config.quality_share > 0 else None
    engine, notes = resolve(options, config, experiment.images)
    start, source = started_from(replay, longer, path)
    run = open_run(path, config, facts, conditioning, replay, start, why)
    if start and source:
        copy_start(run.path, start, source)
    notes = [*whole.notes, *notes]
    if run.finished():
        return
    refuse_other_clusters(run, conditioning, ELSEWHERE)
    if not (run.path / "data.png").is_file():
        run.write("data.png", figures.examples(experiment.training.dataset, facts.classes))
    with run.locked() as unlocked:
        remove_left_over(run.path)
        session = Session(
            run, experiment, options, engine, scorer, decisions, replay, started,
            [*notes, *unlocked],
        )  # fmt: skip
        yield from session.records()


@dataclass
class Session:
    """A session on a run folder that is locked.

    scorer: for the quality of samples, or None. decisions: those to replay. replay: the run that is
    repeated, or None. started: time.monotonic() at the start of the process. notes: for users."""

    run: Run
    experiment: Experiment
    options: SessionOptions
    engine: Engine
    scorer: Scorer | None
    decisions: list[Decision]
    replay: Path | None
    started: float
    notes: list[str]
    spent: float = 0.0  # seconds of earlier sessions
    saved: float = field(default_factory=time.monotonic)  # the time of the last checkpoint

    def __post_init__(self) -> None:
        self.state = self.experiment.state
        self.spent = max((record.time for record in self.run.records()), default=0.0)

    def elapsed(self) -> float:
        """The seconds of the run so far, over all its sessions."""
        return self.spent + time.monotonic() - self.started

    def records(self) -> Iterator[Record]:
        """Train from the last checkpoint to the end, or until a signal."""
        run, state = self.run, self.state
        self.restore()
        self.rewind()
        logged = list(run.records())
        first = self.started_record(logged)
        snapshots = of_kind(Snapshot, logged)
        clock = self.clock(logged)
        run.append(first)
        yield first
        self.keep_before_decay(clock)
        self.saved = time.monotonic()
        signals = Signals()
        try:
            with signals:
                records = fit(
                    self.experiment, clock, self.engine, scorer=self.scorer,
                    snapshots_done=[snapshot.step for snapshot in snapshots],
                    stop=lambda: signals.received != 0, insist=self.options.compile == "on",
                )  # fmt: skip
                for record in records:
                    signals.something_to_save |= isinstance(record, StepTaken)
                    yield from self.keep(record)
                    if isinstance(record, StepTaken | Cooldown):
                        self.keep_before_decay(clock)
                if signals.received and not run.finished():
                    raise Interrupted(signals.received)
        finally:
            # No step is lost, but the time of this session counts.
            if signals.received and not signals.something_to_save:
                run.append(Stopped(state.step, clock.now()))

    def restore(self) -> None:
        """Read the last checkpoint, where there is one.

        Raises UserError for a damaged one, or for one of another network."""
        run, state = self.run, self.state
        files = (run.checkpoint_path, run.path / START)
        path = next((path for path in files if path.is_file()), None)
        if path is None:
            return
        tensors, step = run.load_tensors(path)
        expected = self.experiment.expected if step else state.tensors()
        if not any(name.startswith(WIDE) for name in tensors):  # of an earlier version
            expected = {n: value for n, value in expected.items() if not n.startswith(WIDE)}
        if shapes(tensors) != shapes(expected):
            raise UserError(
                f"{path} does not fit the network of {run.path}/config.json; bring "
                "back the run's own checkpoint, or begin a new run"
            )
        state.restore(tensors, step)

    def rewind(self) -> None:
        """Remove the log's records after the state's step. The decisions of a replay stay."""
        self.run.rewind_log(self.state.step)
        recorded = decisions_of(self.run.records())
        for decision in self.decisions:
            if decision not in recorded:
                self.run.append(decision)

    def started_record(self, logged: list[Record]) -> SessionStarted:
        """The session's first record. logged: the records so far.

        It has a note where the bits of the result may differ from those of the earlier sessions, or
        of the run that is replayed."""
        earlier = of_kind(SessionStarted, logged)
        if not earlier and self.replay:
            earlier = Run(self.replay).of(SessionStarted)
        machine = {
            **machine_facts(),
            "precision": self.engine.precision,
            "compiled": self.engine.compiled,
        }
        if self.engine.compiled:
            machine["compiler"] = compiler_version()
        then = earlier[-1].machine if earlier else machine
        changed = [key for key, value in machine.items() if then.get(key) != value]
        notes = list(self.notes)
        if changed:
            notes.append(
                f"these are not the machine, versions or options of before ({', '.join(changed)}): "
                "the result will not be the same to the bit"
            )
        return SessionStarted(
            self.state.step, round(self.elapsed(), 3), machine, self.experiment.parameters, notes
        )

    def clock(self, logged: list[Record]) -> Clock:
        """The clock, with the decisions of earlier sessions. logged: the records so far."""
        config = self.experiment.config
        snapshots, qualities = of_kind(Snapshot, logged), of_kind(Quality, logged)
        start, steps = self.run.about().start, self.experiment.steps
        begin = start.step if start else 0
        clock = Clock(
            self.elapsed,
            config.decay,
            budget=None if config.minutes is None else 60 * config.minutes,
            steps=None if steps is None else begin + steps,
            begin=begin,
            rate=start.rate if start else 1.0,
            replayed=self.replay is not None,
            snapshot_seconds=snapshots[-1].seconds if snapshots else 0.0,
            quality_seconds=qualities[-1].seconds if qualities else 0.0,
        )
        clock.read(decisions_of(logged))
        return clock

    def keep_before_decay(self, clock: Clock) -> None:
        """Keep the state of the step at which the learning rate begins to fall."""
        state, path = self.state, self.run.path / BEFORE_DECAY
        if clock.cooldowns and state.step == clock.cooldowns[0].start:
            if path.is_file() and self.run.load_tensors(path)[1] == state.step:
                return
            save_tensors(path, state.tensors(), {"step": str(state.step)})

    def save(self) -> None:
        """Write a checkpoint. The log is on the disk first, because it holds the decisions."""
        self.run.sync_log()
        self.run.save_checkpoint(self.state.tensors(), self.state.step)
        self.saved = time.monotonic()

    def keep(self, record: Record) -> Iterator[Record]:
        """Write a record to the log, and a checkpoint where one is due. Yields the record.

        Before the last record it yields one for each figure that could not be drawn."""
        run, state = self.run, self.state
        match record:
            case Finished():
                self.save()
                run.save_model(dict(state.average.state_dict()), state.step)
                for draw, name in (
                    (figures.loss_curve, "loss.png"),
                    (figures.timeline, "timeline.png"),
                ):
                    try:
                        draw(run)
                    except figures.NotDrawn as error:
                        undrawn = PictureFailed(record.step, record.time, name, str(error)[:1000])
                        run.append(undrawn)
                        yield undrawn
                run.append(record)
                yield record
                return
            case Rollback():
                self.save()  # before the log: after a kill between the two, the step fails again
                self.rewind()
            case Snapshot():
                classes = len(self.experiment.facts.classes)
                columns = columns_for(len(record.images), classes)
                run.write(record.file, png_bytes(image_grid(record.images, columns)))
                keep_average(run, dict(state.average.state_dict()), record.step)
                if (wide := state.wide_average(self.experiment.config.ema)) is not None:
                    keep_average(run, wide, record.step, "wide")
        run.append(record)
        every = self.options.checkpoint_every
        due = time.monotonic() - self.saved > SAVE_SECONDS
        if every:
            due = record.step % every == 0
        if isinstance(record, Stopped) or (isinstance(record, StepTaken) and due):
            self.save()
        yield record
