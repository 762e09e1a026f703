"""Whether a run folder fits the run that is asked for: configuration, images, clusters, start."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.base.errors import UserError
from undiffuse.runs.folder import Run
from undiffuse.runs.longer import BEFORE_DECAY, START, Start, same_start
from undiffuse.training.config import BUDGETS, Config
from undiffuse.training.experiment import DataFacts, prepare_data
from undiffuse.training.fields import BY_RULE
from undiffuse.training.presets import differences
from undiffuse.training.records import Cooldown, Decision, Projection, Record, Rollback

if TYPE_CHECKING:
    from undiffuse.data.dataset import Dataset
    from undiffuse.diffusion.conditioning import Conditioning

ELSEWHERE = "begin a new run in another folder with out=FOLDER"


def open_run(
    path: Path,
    config: Config,
    facts: DataFacts,
    conditioning: Conditioning,
    replay_of: Path | None,
    start: Start | None = None,
    decided: dict[str, str] | None = None,
) -> Run:
    """The run folder at `path`. It is made where there is none. Arguments: as for `Run.create`.

    Raises UserError where the folder holds a run with another configuration, with other images, or
    of another replay."""
    run, source = Run(path), str(replay_of.resolve()) if replay_of else None
    if not run.exists():
        run.create(config, facts, conditioning, source, start, decided)
        return run
    there = run.about()
    moved = there.facts.same_images(facts)
    may_differ = {"data"} if moved else set()
    different = differences(there.config, config, may_differ)
    if different:
        others = differences(there.config, config, may_differ | {*BUDGETS})
        if not others and run.finished():
            raise UserError(
                f"{path} holds a finished run ({'; '.join(different)}); for a longer one begin a "
                f"new run from it: undiffuse train --from {path} --out FOLDER --minutes M"
            )
        raise UserError(
            f"{path} holds a run with another configuration ({'; '.join(different)}); {ELSEWHERE}"
        )
    if there.replay_of != source:
        is_what = f"replays {there.replay_of}" if there.replay_of else "is no replay"
        raise UserError(f"{path} holds a run that {is_what}; {ELSEWHERE}")
    if not same_start(there.start, start):
        begins = f"begins from {there.start.run}" if there.start else "begins from nothing"
        raise UserError(f"{path} holds a run that {begins}; {ELSEWHERE}")
    refuse_other_images(run, facts, ELSEWHERE)
    if there.config.data != config.data:
        run.note_place(config.data)
    return run


def adopted(config: Config, runs: Iterable[Run]) -> tuple[Config, dict[str, str]]:
    """(the configuration with the decisions of a run; why they were made, by field).

    runs: the first of them that exists is meant. It keeps what it has decided from its data, also
    where another version or machine would decide otherwise."""
    for run in runs:
        if run.exists():
            there = run.about()
            kept = [
                n
                for n in there.decided
                if getattr(config, n) in (BY_RULE[n], getattr(there.config, n))
            ]
            values = {name: getattr(there.config, name) for name in kept}
            return config.model_copy(update=values), {name: there.decided[name] for name in kept}
    return config, {}


def started_from(
    replay: Path | None, longer: Path | None, path: Path
) -> tuple[Start | None, Path | None]:
    """(where the run at `path` begins, None for a run that begins from nothing; the state's file).

    A longer run that exists knows it without the run that it goes on from."""
    if replay:
        start = Run(replay).about().start
        return start, Run(replay).path / START if start else None
    if longer is None:
        return None, None
    if Run(path).exists() and not (longer / BEFORE_DECAY).is_file():
        return Run(path).about().start, None
    return start_of(Run(longer)), longer / BEFORE_DECAY


def start_of(old: Run) -> Start:
    """Where a longer run of the finished run `old` begins.

    Raises UserError where it is unfinished, or kept no state."""
    path = old.path / BEFORE_DECAY
    if not old.finished():
        raise UserError(
            f"{old.path} is unfinished; the command that began it continues it: {old.command()}"
        )
    if not path.is_file():
        raise UserError(
            f"{old.path} has no {BEFORE_DECAY}, from which a longer run begins; train it again"
        )
    _, step = old.load_tensors(path)
    earlier = old.about().start
    rollbacks = sum(rollback.step <= step for rollback in old.of(Rollback))
    rate = (earlier.rate if earlier else 1.0) * 0.5**rollbacks
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Start(str(old.path.resolve()), digest, step, rate)


def trained_on(run: Run, whole: Dataset) -> tuple[Dataset, Dataset]:
    """(training set, held-out set) of a run, from its whole data set.

    Raises UserError where the run was trained on other images."""
    training, held_out, facts = prepare_data(run.about().config, whole)
    refuse_other_images(run, facts)
    return training, held_out


def refuse_other_images(run: Run, facts: DataFacts, remedy: str = "bring those back") -> None:
    """Raises UserError where a run was trained on other images than those of `facts`.

    remedy: what to do, for the error."""
    about = run.about()
    if not about.facts.same_images(facts):
        raise UserError(
            f"{run.path} was trained on other images than '{facts.name}' holds now; {remedy}"
        )


def refuse_other_clusters(run: Run, conditioning: Conditioning, remedy: str) -> None:
    """Raises UserError where a run had another number of clusters than there are now.

    The sizes of the clusters are not compared. On another machine rounding may move an image into
    another cluster. remedy: what to do, for the error."""
    there = run.about().conditioning
    then = len(there.clusters), there.class_of_cluster
    if then != (len(conditioning.clusters), conditioning.class_of_cluster):
        raise UserError(
            f"{run.path} was begun with {len(there.clusters)} clusters of similar images, and "
            f"{len(conditioning.clusters)} are found now; {remedy}"
        )


def replayed_decisions(source: Run) -> list[Decision]:
    """The decisions of a run, for a replay. Raises UserError where it is unfinished."""
    if not source.finished():
        raise UserError(
            f"{source.path} is unfinished, so there is no whole run to replay; finish it first"
        )
    return decisions_of(source.records())


def decisions_of(records: Iterable[Record]) -> list[Decision]:
    """The decisions of a run's clock, in order."""
    return [r for r in records if isinstance(r, Projection | Cooldown | Rollback)]
