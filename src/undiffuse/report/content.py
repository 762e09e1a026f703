"""What the report says: a run folder as a list of blocks. Numbers are the run's own; code is the source that runs."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import undiffuse
from undiffuse.base.errors import UserError
from undiffuse.base.images import columns_for, note_of
from undiffuse.report.blocks import (
    Block,
    Code,
    Command,
    Equation,
    Figure,
    Heading,
    Missing,
    Table,
    Text,
    coded,
    plain,
)
from undiffuse.runs.evaluation import FORMAT as METRICS_FORMAT
from undiffuse.runs.folder import About, Run
from undiffuse.study import FORMAT as STUDY_FORMAT
from undiffuse.training.config import Config
from undiffuse.training.experiment import build_network
from undiffuse.training.presets import PRESETS

if TYPE_CHECKING:
    from torch import nn

LARGEST_RESULTS = 2**24  # bytes


@dataclass(frozen=True)
class Source:
    """What a report reads of a run folder. trainings: the studies of trainings, by name. pictures: by file name, the ones that there are.
    class_lies_in: "row" or "column" of samples.png, None where neither is of one class."""

    run: Run
    about: About
    events: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    samplers: dict[str, Any] | None
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    class_lies_in: str | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def config(self) -> Config:
        return self.about.config

    @cached_property
    def network(self) -> nn.Module:
        """The network as it was built, but without memory: its weights have shapes only."""
        return build_network(self.config, self.about.facts, device="meta").eval().to("meta")

    @cached_property
    def steps(self) -> int:
        return max((event["step"] for event in self.events), default=0)

    @cached_property
    def minutes(self) -> float:
        return max((event["time"] for event in self.events), default=0.0) / 60

    @cached_property
    def finished(self) -> bool:
        return bool(self.of("finished"))

    def is_of_now(self, step: int) -> bool:
        """Whether results of the weights of this step are the run's: of a finished run, those of its end."""
        return not self.finished or step == self.steps


def read(run: Run) -> Source:
    """Raises UserError where there is no run, or where its metrics cannot be read."""
    about = run.about()
    metrics = content_of(run.path / "metrics.json", METRICS_FORMAT, run.command_for("evaluate"))
    studies = {}
    for name in ("samplers", *STUDIES):
        studies[name] = content_of(
            run.path / "study" / f"{name}.json", STUDY_FORMAT, run.command_for("study", name)
        )
    pictures = {
        name: (run.path / name).read_bytes() for name in PICTURES if (run.path / name).is_file()
    }
    for study in studies.values():
        for picture in [row["picture"] for row in study["rows"]] if study else []:
            pictures[f"study-{picture}"] = picture_of(run.path / "study", picture)
    samplers = studies.pop("samplers")
    trainings = {name: study for name, study in studies.items() if study}
    source = Source(run, about, list(run.log()), metrics, samplers, trainings, pictures)
    if samplers and source.is_of_now(samplers["step"]):
        pictures["denoising.png"] = picture_of(run.path / "study", "denoising.png")
        if about.guesses_unlabelled:  # else the study shows none
            pictures["guesses.png"] = picture_of(run.path / "study", "guesses.png")
    return with_samples(source)


def with_samples(source: Source) -> Source:
    """The source with images that the run drew by itself for samples.png: its own, unless that was drawn in another way or by earlier weights,
    else the last snapshot."""
    classes = len(source.about.facts.classes) if source.config.conditional else 0
    pictures = dict(source.pictures)
    snapshots = [
        (event["step"], source.run.path / event["file"]) for event in source.of("snapshot")
    ]
    latest = max((snapshot for snapshot in snapshots if snapshot[1].is_file()), default=None)
    note = note_of(pictures.pop("samples.png", b""))
    of = note.get("step")
    if (
        note.get("usual") is True
        and isinstance(of, int)
        and source.is_of_now(of)
        and of >= (latest or (0,))[0]
    ):
        pictures["samples.png"] = source.pictures["samples.png"]
        return replace(
            source,
            pictures=pictures,
            class_lies_in="row" if note.get("rows") == classes > 1 else None,
        )
    if latest:
        pictures["samples.png"] = latest[1].read_bytes()
    in_columns = classes > 1 and columns_for(source.config.snapshot_images, classes) % classes == 0
    return replace(source, pictures=pictures, class_lies_in="column" if in_columns else None)


def picture_of(folder: Path, name: object) -> bytes:
    """A picture that a study names. Raises UserError where it is not there, or where the name leads out of the folder."""
    path = folder / Path(str(name)).name
    if path.name != name or not path.is_file():
        raise UserError(
            f"{folder} has no picture {name}; remove the folder, and make the study anew"
        )
    return path.read_bytes()


def content_of(path: Path, version: int, command: str) -> dict[str, Any] | None:
    """What a JSON file of ours holds, None where there is none. Raises UserError, which names the command that makes it anew."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LARGEST_RESULTS:
            raise ValueError(f"it is larger than {LARGEST_RESULTS:,} bytes")
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content["format"] != version:
            raise ValueError(f"format {content['format']}")
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        folder = path.with_suffix("")  # of a study's trainings
        what = f"it and {folder}" if folder.is_dir() else "it"
        raise UserError(
            f"{path} can't be read ({error}); remove {what}, and make it anew with: {command}"
        ) from error
    return content


PICTURES = (
    "data.png",
    "loss.png",
    "timeline.png",
    "samples.png",
    "bits.png",
    "novelty.png",
    "unsure.png",
)


def blocks(source: Source) -> list[Block]:
    """The whole report."""
    parts = (
        summary,
        ideas,
        process,
        model,
        samplers,
        evaluation,
        hyperparameters,
        training,
        results,
        compared,
        trained,
        limits,
        references,
    )
    return [block for part in parts for block in part(source)]


def code(*functions: Any) -> Iterator[Code]:
    """The source of functions or classes, with the file and line where they stand."""
    root = Path(undiffuse.__file__).parent.parent
    for function in functions:
        inner = inspect.unwrap(function)
        lines, first = inspect.getsourcelines(inner)
        file = inspect.getsourcefile(inner)
        assert file is not None
        path = Path(file)
        yield Code(
            "".join(lines),
            str(path.relative_to(root) if path.is_relative_to(root) else path.name),
            first,
        )


def with_examples(source: Source, figure: Figure) -> Iterator[Block]:
    """A figure that is drawn from training images, if the run kept some."""
    if "data.png" in source.pictures:
        yield figure
    else:
        yield Missing(
            "A picture is left out, as this run was begun by a version that kept no training images.",
            "undiffuse train",
        )


def number(x: float | None, digits: int = 3) -> str:
    return "-" if x is None else f"{x:#.{digits}g}".rstrip(".") if abs(x) < 1000 else f"{x:,.0f}"


def interval(figure: dict[str, Any]) -> str:
    return f"{number(figure['low'])} to {number(figure['high'])}"


def distance(row: dict[str, Any]) -> tuple[str, str]:
    """The Frechet distance in a study's row, and its interval."""
    return number(row["frechet"]), f"{number(row['frechet_low'])} to {number(row['frechet_high'])}"


def summary(source: Source) -> Iterator[Block]:
    facts = source.about.facts
    channels, height, width = facts.shape
    kind = f"${height} times {width}$ pixels, {'grey' if channels == 1 else f'{channels} colours'}"
    state = (
        ""
        if source.finished
        else " The run was interrupted, so all of this is of an unfinished model."
    )
    yield Text(
        f"A diffusion model was trained on {facts.training:,} images of _{plain(facts.name)}_ ({kind}) for {source.steps:,} steps, "
        f"in {source.minutes:.1f} minutes on a CPU.{state} This report says what it is, how it was made, and how good it is; "
        "its results are the run's own, and its code is taken from the package's files."
    )
    if (
        source.metrics
        and "frechet" in source.metrics
        and source.is_of_now(source.metrics["of"]["step"])
    ):
        found, step = source.metrics["frechet"], source.metrics["of"]["step"]
        yield Text(
            f"{'The' if step == source.steps else f'After step {step:,} the'} Fréchet distance of its images to the training images is {number(found['ratio'], 2)} times (95% interval "
            f"{number(found['ratio_low'], 2)} to {number(found['ratio_high'], 2)}) that of real images that it was not trained on."
        )
    if "samples.png" in source.pictures:
        yield Figure(
            "samples",
            "New images, drawn by this model; none was picked out."
            + (f" A {source.class_lies_in} is a class." if source.class_lies_in else ""),
            f"A grid of images drawn by the model, in the manner of {facts.name}.",
            0.8,
        )
    else:
        yield Missing(
            "There are no images of this run yet.",
            source.run.command_for("sample")
            if source.of("finished") or source.run.checkpoint_path.is_file()
            else source.run.command(),
        )


def ideas(source: Source) -> Iterator[Block]:
    yield Heading(1, "What a diffusion model is")
    yield Heading(2, "Generative models and latent variables")
    yield Text(
        "A data set is a handful of draws from a distribution $q(x)$ that nobody knows: all images that could have been in it. A "
        "_generative model_ learns a distribution $p_theta (x)$ close to it, and draws new samples, which could have come from the "
        "data set and are not in it. What makes this hard is that the images fill next to nothing of the space of all pixels: almost every point "
        "of it is noise."
    )
    yield Text(
        "Many models explain what is seen by _latent variables_ that are not: as the people in Plato's cave see shadows, and have to think of "
        "what throws them, a model has to think of causes that make an image likely. In a diffusion model the latents of an image $x_0$ are its "
        "own noisy versions $x_1, ..., x_T$, of the same size as the image. Nothing about them has to be learned: $x_t$ is $x_0$ with a known "
        "amount of noise. Learned is only the way back."
    )
    yield from with_examples(
        source,
        Figure(
            "chain",
            "The chain of latents. To the right, noise is added, by a fixed rule $q$; to the left, the network takes it away, step by step.",
            "An image on the left, noisier and noisier copies to the right, with arrows q to the right and p to the left.",
        ),
    )
    yield Text(
        "The longer derivation of what follows is in Luo (2022). The numbers (1) to (8) are those of the course handout, three of whose "
        "equations are misprinted; this is pointed out where it matters."
    )


def process(source: Source) -> Iterator[Block]:
    from undiffuse.diffusion import process as forward
    from undiffuse.diffusion.schedule import SCHEDULES, chain

    config = source.config
    yield Heading(1, "The forward process: from image to noise")
    yield Heading(2, "One step of noise")
    yield Text(
        "Each step keeps a share of the signal, and fills up with noise to the same total size. The share $alpha_t$ lies between 0 and 1; the "
        "noise schedule fixes it, and it is not learned."
    )
    yield Equation("q(x_t | x_(t-1)) = cal(N)(sqrt(alpha_t) x_(t-1), (1 - alpha_t) bold(I))", "1")
    yield Text("To draw from it, a standard normal $epsilon$ is scaled to that standard deviation:")
    yield Equation("x_t = sqrt(alpha_t) x_(t-1) + sqrt(1 - alpha_t) epsilon", "2")
    yield Text(
        "The handout prints $(1 - alpha_t) epsilon$ here, without the root. That would be noise of variance $(1 - alpha_t)^2$, which "
        "contradicts (1). In the code `alpha_t` and `sigma_t` are what is left of the image at $t$, and how much noise there is: $sqrt(macron(alpha)_t)$ and "
        "$sqrt(1 - macron(alpha)_t)$, with the $macron(alpha)_t$ of (3)."
    )
    yield from code(forward.step)
    yield Heading(2, "The jump")
    yield Text(
        "Sums of normal variables are normal, so all steps up to $t$ make one jump. With the product $macron(alpha)_t = alpha_1 alpha_2 dots.h.c "
        "alpha_t$ it is"
    )
    yield Equation("x_t = sqrt(macron(alpha)_t) x_0 + sqrt(1 - macron(alpha)_t) epsilon_0", "3")
    yield Text(
        "The handout prints $x_(t-1)$ for $x_0$, and $(1 - macron(alpha)_t)$ without its root. The jump is what makes training cheap: any $x_t$ "
        "comes from the image in one line, without the steps before it."
    )
    yield from code(forward.jump)
    yield from with_examples(
        source,
        Figure(
            "noising",
            "Training images on their way to noise, by (3) and this run's schedule.",
            "Rows of training images that become noisier from left to right until nothing of them is left.",
        ),
    )
    yield Heading(2, "The noise schedule")
    yield Text(
        f"This run uses the schedule {coded(config.schedule)}. In this software a schedule is a pair of functions of the time $t$ from 0 (image) to 1 "
        "(noise): $alpha(t)$, what is left of the image, and $sigma(t)$, how much noise there is. A chain of $T$ steps reads them at $t_i = i "
        "slash T$, and then $alpha(t_i) = sqrt(macron(alpha)_i)$. What a network sees of it is their ratio, the signal-to-noise ratio SNR "
        "$= alpha^2 slash sigma^2$."
        + (
            ""
            if keeps_variance(config.schedule)
            else " This schedule's $alpha(t)^2 + sigma(t)^2$ is not 1, so (1) to (8) hold for $x_t slash sqrt(alpha(t)^2 + sigma(t)^2)$, with "
            "$macron(alpha) = alpha^2 slash (alpha^2 + sigma^2)$; the code takes $alpha$ and $sigma$ as they are."
        )
    )
    yield Figure(
        "schedules",
        f"The schedules to choose from; {coded(config.schedule)} is this run's. Left: the share of the image's variance that is left. Right: "
        "the logarithm of the signal-to-noise ratio, which the software cuts off at ±15.",
        "Two charts of falling curves, one for each noise schedule.",
    )
    yield from code(SCHEDULES[config.schedule.partition(":")[0]], chain)


def keeps_variance(schedule: str) -> bool:
    """Whether alpha^2 + sigma^2 = 1 at all times."""
    import torch

    from undiffuse.diffusion.schedule import SCHEDULES, noise_level

    level = noise_level(SCHEDULES[schedule], torch.linspace(0, 1, 11, dtype=torch.float64))
    return bool(((level.alpha**2 + level.sigma**2 - 1).abs() < 1e-9).all())


def model(source: Source) -> Iterator[Block]:
    from undiffuse.diffusion import objective, times
    from undiffuse.diffusion import process as forward
    from undiffuse.diffusion.denoiser import PREDICTIONS, Denoiser
    from undiffuse.diffusion.times import TIMES
    from undiffuse.diffusion.weightings import WEIGHTINGS
    from undiffuse.nets import NETWORKS

    config = source.config
    yield Heading(1, "The model: from noise to image")
    yield Heading(2, "The posterior")
    yield Text(
        "If the image were known, the step back would be known too. By Bayes' rule $q(x_(t-1) | x_t, x_0)$ is normal, its mean a weighted sum of "
        "where one is and where one is going:"
    )
    yield Equation(
        "mu_q (x_t, x_0, t) = frac(sqrt(alpha_t) (1 - macron(alpha)_(t-1)) x_t + sqrt(macron(alpha)_(t-1)) (1 - alpha_t) x_0, "
        "1 - macron(alpha)_t)",
        "4",
    )
    yield Text(
        "and its variance is $(1 - alpha_t)(1 - macron(alpha)_(t-1)) slash (1 - macron(alpha)_t)$. At $t = 1$ the mean is exactly $x_0$ and the "
        "variance 0: the last step adds no noise."
    )
    yield from code(forward.posterior)
    yield Text(
        "The image is not known, so a network guesses it from $x_t$. The guess $hat(x)_theta (x_t, t)$ in place of $x_0$ gives the model's mean:"
    )
    yield Equation("mu_theta (x_t, t) = mu_q (x_t, hat(x)_theta (x_t, t), t)", "5")
    yield Heading(2, "The loss")
    yield Text(
        "The model is good where its step back is near the posterior's, and that is where the guess is near the image. So what is minimised is, for "
        "each image,"
    )
    yield Equation(
        'EE_(t tilde.op "Uniform"{2..T}) thin EE_(x_t tilde.op q(x_t | x_0)) norm(hat(x)_theta (x_t, t) - x_0)^2'.replace(
            "thin ", ""
        ),
        "6",
    )
    yield Text(
        f"averaged over the data set. Here the squared error is weighted by $w$ of the signal-to-noise ratio, {coded(config.weighting)}, and the "
        f"times are drawn as {coded(config.times)}"
        + (
            f", from a chain of $T = {config.chain}$ steps."
            if config.chain
            else ", in continuous time, so that any number of steps can be sampled."
        )
    )
    yield from code(
        objective.loss,
        objective.regression,
        times.draw_times,
        WEIGHTINGS[config.weighting.partition(":")[0]],
        TIMES[config.times.partition(":")[0]],
    )
    yield Heading(2, "What the network predicts")
    yield Text(
        f'The network $F$ need not give the image itself. Its prediction here is {coded(config.predict)}: the guess is $c_"skip" x_t + c_"out" '
        'F(c_"in" x_t, log "SNR")$, with coefficients that make what the network sees, and what it has to give, of about unit size at '
        "every noise level. All predictions differ by these three coefficients only."
    )
    yield from code(PREDICTIONS[config.predict.partition(":")[0]], Denoiser.__call__)
    if "guesses.png" in source.pictures:
        yield Figure(
            "guesses",
            f"What the network sees at each noise level: images that were {'held out' if source.about.facts.validation else 'trained on'}, with more noise from left to right (t = 0, 0.1, ..., 1). Upper rows: $x_t$. Lower rows: "
            "the guess $hat(x)_theta (x_t, t)$"
            + (f", told no {what_is_told(source)}" if source.about.told else "")
            + "; at $t = 0$ the image itself. Where little of the image is left, the best guess is a mean of many.",
            "Pairs of rows: an image that becomes noise, and below it guesses that go from clear to a blurred mean.",
        )
    yield Heading(2, "The network")
    yield Text(
        f"The network is {coded(config.net)}, with {plain(config.channels)} channels and {plain(config.blocks)} blocks at its levels. It is told the "
        "noise level"
        + (" and the class" if source.about.told == "class" else "")
        + (
            f" and which of {len(source.about.facts.groups)} groups of similar images, found by k-means, the image is in"
            if source.about.facts.groups
            else ""
        )
        + (
            ": each is a part of a class, and for an image of a class one of its groups is drawn, as often as it is large"
            if source.about.facts.class_of
            else ""
        )
        + (
            f". Beside $x_t$ it sees the mean image of that {what_is_told(source)}, or of all images where it is told none"
            if getattr(source.network, "pictures", None) is not None
            else ""
        )
        + f". It has {parameters(source):,} weights."
    )
    yield from code(NETWORKS[config.net])


def samplers(source: Source) -> Iterator[Block]:
    from undiffuse.diffusion import samplers as steps
    from undiffuse.diffusion import sampling

    config = source.config
    yield Heading(1, "Drawing new images")
    yield Text(
        "One starts from pure noise, $x_T tilde.op cal(N)(0, bold(I))$, and goes back step by step. The handout has two ways:"
    )
    yield Equation("x_(t-1) = mu_theta (x_t, t)", "7")
    yield Equation(
        "x_(t-1) = mu_theta (x_t, t) + sqrt(frac((1 - alpha_t) (1 - macron(alpha)_(t-1)), 1 - macron(alpha)_t)) epsilon_t",
        "8",
    )
    yield Text(
        "The handout prints (8) without the root: that adds the posterior's variance where its standard deviation belongs, and so too little noise. And "
        'it calls the two "DDIM and DDPM sampling". (8) is DDPM (Ho et al. 2020). (7) is _not_ DDIM (Song et al. 2021): the posterior\'s mean, '
        "repeated, shrinks the noise faster than the chain does, and the samples collapse onto few shapes. DDIM takes away exactly as much noise as "
        "there is less of at the next time, and keeps the direction of the rest:"
    )
    yield Equation(
        "x_(t-1) = sqrt(macron(alpha)_(t-1)) hat(x)_theta + sqrt(1 - macron(alpha)_(t-1)) hat(epsilon), quad hat(epsilon) = "
        "frac(x_t - sqrt(macron(alpha)_t) hat(x)_theta, sqrt(1 - macron(alpha)_t))",
        "",
        "DDIM",
    )
    if "denoising.png" in source.pictures:
        yield Figure(
            "denoising",
            "Three images on their way, by (8) in 50 steps without guidance, from noise on the left. Upper rows: $x_t$. Lower rows: the network's guess "
            "$hat(x)_theta (x_t, t)$, at first blurred, as a mean of what it might become is, at last the image.",
            "Pairs of rows: noise that becomes a clear image, and below it a blurred guess that becomes the same image.",
        )
    yield Text(
        "In the code a `Step` holds $x_t$, the two times, and the guess; a sampler is the line of mathematics that leads to the next image. "
        "In many small steps DDIM follows a differential equation, the probability-flow ODE:"
    )
    yield Equation("dif (x_t / alpha(t)) = hat(epsilon) dif (sigma(t) / alpha(t))", "", "ODE")
    yield Text(
        "of which a step of DDIM is Euler's. Heun's method and DPM-Solver++ 2M are of second order: they err less where steps are small enough. The "
        f"stochastic DPM-Solver++ 2M is (8) with such a guess. This run's own is {coded(config.sampler)}."
    )
    own = steps.SAMPLERS[config.sampler.partition(":")[0]]
    shown = [
        steps.mean,
        steps.ddpm,
        steps.ddpm_printed,
        steps.ddim,
        steps.euler,
        steps.heun,
        steps.dpmpp_2m,
        steps.second_order,
    ]
    yield from code(*shown, *([] if own in shown else [own]), sampling.trajectory)
    if source.about.told:
        guidance = config.drawing(source.steps, source.about.told)["guidance"]
        what = what_is_told(source)
        yield Text(
            f"Of {config.label_dropout:.0%} of the images the network was not told the {what}. _Guidance_ (Ho & Salimans 2022) goes from its guess without the {what} "
            f"through the one with it, by a factor: above 1 the images are clearer, and of less variety. "
            + (
                "This run's are drawn without."
                if guidance == 1
                else f"This run's are drawn with {number(guidance)}."
            )
        )
        yield from code(steps.Guide.x_0)


def evaluation(source: Source) -> Iterator[Block]:
    from undiffuse.measuring import distances, novelty

    yield Heading(1, "How it is measured")
    yield Text(
        "_Quality._ Images are compared by the 64 features of a small classifier. The Fréchet distance compares the means and covariances of the features "
        "of drawn and of real images; the kernel distance compares all of their polynomial moments of third degree, by an estimate without bias, which may "
        "fall below 0. Precision is the share of drawn images that lie among real ones (no farther from one than its k-th neighbour), recall the share of real ones "
        "that lie among drawn ones; density counts among how many, coverage is the share of real ones that have a drawn one among their neighbours. Class balance "
        "is the largest difference in probability, over all sets of classes, between drawn and real images: their total variation. The classifier's "
        "confidence tells how many images look like nothing; and a second classifier, trained on drawn images only, is tried on real ones. "
        "None of these has a meaning by itself, so each result stands beside the same measure of real images that the model was not trained on, "
        "and beside its 95% interval.\n\n"
        "_Likelihood._ Bits per dimension are how many bits a perfect code made from the model needs for a value of a pixel; the variational bound is an upper "
        "limit of that.\n\n"
        "_Novelty._ A drawn image should be like the training images, and not be one of them. For each, its two nearest training images are found; a copy is "
        "near one and far from all others, so the ratio of the two distances tells it."
    )
    yield from code(distances.frechet, novelty.audit)


def hyperparameters(source: Source) -> Iterator[Block]:
    config = source.config
    preset = PRESETS.get(config.preset, {})
    yield Heading(1, "Hyperparameters")
    unused = set()
    if not source.about.facts.groups:
        unused.add("groups")
    if not source.about.told:
        unused |= {"label_dropout", "guidance"}
    if source.finished and not source.of("score"):
        unused.add("score_share")
    rows = []
    for name, why in source.about.reasons.items():
        value = getattr(config, name)
        default = preset[name][0] if name in preset else Config.model_fields[name].default
        mark = "" if value == default or name == "preset" else " \\*"
        value = config.drawing(source.steps, source.about.told).get(name, value)
        shown = (
            UNSET.get(name, "none")
            if value is None
            else " ".join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
        )
        rows.append(
            (
                f"`{name.replace('_', '-')}`{mark}",
                plain(shown),
                "not used in this run" if name in unused else plain(why),
            )
        )
    yield Table(
        ("name", "value", "why"),
        rows,
        f"Every hyperparameter, with the reason for its value. An asterisk marks what was changed from the preset {coded(config.preset)}.",
    )
    sessions = source.of("session")
    machine = sessions[-1]["machine"] if sessions else {}
    since = source.events[source.events.index(sessions[-1]) :] if sessions else []
    if any(
        event["event"] == "uncompiled" for event in since
    ):  # found out after the session was logged
        machine = {**machine, "compiled": False}
    seen = source.steps * config.batch_size
    what = [
        (
            "images seen",
            f"{seen:,}, or {seen / max(1, source.about.facts.training):.2f} times the training set",
        ),
        (
            "arithmetic",
            f"{seen * flops_an_image(source) / 1e15:.3g} PFLOP (convolutions and matrix products, forward and backward)",
        ),
        (
            "time",
            f"{source.minutes:.1f} minutes, in {len(sessions)} session{'s' if len(sessions) != 1 else ''}",
        ),
        (
            "processor time",
            f"{source.minutes * machine.get('threads', 1):.0f} CPU-minutes at the most, on {machine.get('threads', 'unknown')} threads",
        ),
        ("seed", str(config.seed)),
        *(
            ("instruction set" if key == "cpu" else key, str(value))
            for key, value in machine.items()
        ),
    ]
    yield Table(
        ("what", "this run"),
        [(plain(key), plain(value)) for key, value in what],
        "What the run cost, and what it ran on.",
    )


UNSET = {
    "subset": "all",
    "size": "the data's",
    "checkpoint_every": "automatic",
    "chain": "continuous",
}
"""What no value means, for a hyperparameter of which "none" would mislead."""


def what_is_told(source: Source) -> str:
    """What the network is told of an image, in a word; where it is told something."""
    return "class" if source.about.told == "class" else "group"


def parameters(source: Source) -> int:
    return sum(p.numel() for p in source.network.parameters())


def flops_an_image(source: Source) -> int:
    """Of one image in one step of training: the forward pass, and twice as much for the backward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    facts, network = source.about.facts, source.network
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        label = torch.zeros(1, dtype=torch.long) if source.about.told else None
        network(torch.zeros(1, *facts.shape), torch.zeros(1), label)
    return 3 * counter.get_total_flops()


def training(source: Source) -> Iterator[Block]:
    from undiffuse.training.averages import ema_decay
    from undiffuse.training.step import descend, problem_of

    yield Heading(1, "Training")
    validations, scores = source.of("validation"), source.of("score")
    if validations:
        first, last = validations[0], validations[-1]
        yield Text(
            f"On images that were held out, the untrained network's loss was {number(first['loss'])}"
            + (
                f"; at step {last['step']:,} it was {number(last['loss'])}. It is that of the averaged weights, and so may lie below the loss of the steps."
                if last is not first
                else "."
            )
            + (
                f" Quick samples came from a Fréchet distance of {number(scores[0]['frechet'])} at step {scores[0]['step']:,} to "
                f"{number(scores[-1]['frechet'])} at step {scores[-1]['step']:,}; as many real images have {number(scores[-1]['floor'])}."
                if scores
                else ""
            )
        )
    if "loss.png" in source.pictures:
        yield Figure(
            "loss",
            "The loss as training went on; the held-out loss by noise level, darker later"
            + ("; the quality of quick samples" if scores else "")
            + ".",
            "Charts of the falling loss against the step, and of the held-out loss against the log-SNR.",
        )
    if "timeline.png" in source.pictures:
        yield Figure(
            "timeline",
            "The same noise, drawn at different steps of training, the untrained network first.",
            "Rows of images, from noise at the top to clear images at the bottom.",
            0.66,
        )
    for step, reason in dict.fromkeys(
        (event["step"], event["reason"]) for event in source.of("uncompiled")
    ):
        yield Text(
            f"From step {step:,} the network was trained without being compiled: {plain(reason)}."
        )
    for event in source.of("clock"):
        if event.get("cut"):
            yield Text(
                f"At step {event['of']:,} training went wrong, as {plain(event['reason'])}; it was set back to step {event['step']:,}, and went on with half of the "
                "learning rate."
            )
    if not source.finished:
        yield Missing(
            "This run is unfinished; figures of the whole of it are drawn at its end.",
            source.run.command(),
        )
    yield Text(
        "A step of training draws a batch with its noise and times, goes down the gradient of (6), and takes the new weights into their average, which is what draws. "
        "All of its randomness is a function of the seed and the step, so that a stopped run goes on to the same end. (The loop around it, `fit` in "
        "the same file, decides when to look at samples, when to save and when to stop.)"
    )
    for part in (problem_of, descend, ema_decay):
        yield from code(part)


FIGURES = {
    "frechet": "Fréchet distance to the training images",
    "kid": "kernel distance",
    "precision": "precision, k = 3",
    "recall": "recall, k = 3",
    "density": "density, k = 5",
    "coverage": "coverage, k = 5",
    "class_balance": "class balance: total variation",
    "confidence": "classifier's mean confidence",
    "unsure": "share that the classifier is less than 90% sure of",
    "label_agreement": "share that it takes for the class asked for",
    "train_on_synthetic": "accuracy, on real images, of one trained on drawn ones",
}


def results(source: Source) -> Iterator[Block]:
    found = source.metrics
    yield Heading(1, "Results")
    if found is None:
        yield Missing("This run has not been evaluated.", source.run.command_for("evaluate"))
        return
    if not source.is_of_now(found["of"]["step"]):
        yield Missing(
            f"There is no evaluation of the finished run, only one of step {found['of']['step']:,}.",
            source.run.command_for("evaluate"),
        )
        return
    if found["of"]["step"] != source.steps:
        yield Text(f"All of this is of the weights after step {found['of']['step']:,}.")
    rows = [
        (
            name,
            number(found[key]["value"]),
            interval(found[key]),
            number(found[key].get("floor", found[key].get("control"))),
        )
        for key, name in FIGURES.items()
        if key in found
    ]
    if rows:
        drawn = found["sampling"]
        yield Heading(2, "Quality")
        yield Table(
            ("measure", "value", "95% interval", f"real ({plain(found['reference']['control'])})"),
            rows,
            f"Of {drawn['n']:,} images drawn by {coded(drawn['sampler'])} in {drawn['steps']} steps, {drawn['network_calls']} network calls each.",
            (1, 2, 3),
        )
        if "unsure.png" in source.pictures:
            yield Figure(
                "unsure",
                "The failures: of all drawn images, those that the classifier is least sure of.",
                "A grid of the worst drawn images, many of them malformed.",
                0.7,
            )
    for name, why in found["missing"].items():
        yield Text(f"Not given: {plain(name.replace('_', ' '))}, as {plain(why)}.")
    bits = found.get("bits_per_dim")
    if bits:
        yield Heading(2, "Likelihood")
        yield Text(
            f"The bound of the chain of {bits['chain']:,} steps is {bits['test']:.3f} bits per dimension on the {plain(found['reference']['control'])} "
            f"({bits['low']:.3f} to {bits['high']:.3f}), and {bits['training']['value']:.3f} on training images. The gap is "
            f"{bits['gap']['value']:+.3f} ({bits['gap']['low']:+.3f} to {bits['gap']['high']:+.3f}): "
            + (
                "the overfitting."
                if bits["gap"]["low"] > 0
                else "no overfitting that these images could show."
            )
            + f" The bound holds for {plain(bits['assumes']).replace(plain('x_0_hat'), '$hat(x)_0$')}."
            + (
                f" The probability-flow ODE, which is another model of the data, has {bits['ode']['test']:.3f} ({bits['ode']['low']:.3f} to {bits['ode']['high']:.3f}) on {bits['ode']['n']:,} of the images."
                if "ode" in bits
                else ""
            )
        )
        if "bits.png" in source.pictures:
            yield Figure(
                "bits",
                f"Where on the noise axis the bits of the diffusion are spent; the {bits['reconstruction']['value']:.3f} of the last step to grey levels are not in it.",
                "A chart of bits per dimension against the log-SNR.",
                0.7,
            )
    elif found:
        yield Missing(
            "There are no bits per dimension yet.",
            source.run.command_for("evaluate", after=("--no-quality", "--no-novelty")),
        )
    audit = found.get("novelty")
    if audit:
        yield Heading(2, "Novelty")
        verdict = (
            "The audit found copies of training images among the drawn ones."
            if audit["alarm"]
            else "The audit found no copies of training images among the drawn ones."
        )
        yield Text(
            f"{verdict} Of {audit['n']:,} images {audit['share']:.2%} have a ratio of distances below {audit['threshold']:.3f}, where "
            f"{audit['expected']:.2%} of real ones have (p = {audit['p_value']:.2g}; with these many images the audit sees copies from a share of {audit['detectable']:.2%} on)."
        )
        if "novelty.png" in source.pictures:
            yield Figure(
                "novelty",
                "The likeliest copies: each drawn image with its nearest training image to its right.",
                "Pairs of similar images side by side.",
                0.8,
            )


WAYS = {
    "mean": "(7)",
    "ddpm-printed": "(8) as printed",
    "ddpm": "(8), DDPM",
    "ddim": "DDIM",
    "heun": "Heun",
    "dpmpp-2m": "DPM-Solver++ 2M",
    "dpmpp-2m-sde": "DPM-Solver++ 2M, stochastic",
}


def compared(source: Source) -> Iterator[Block]:
    study = source.samplers
    again = source.run.command_for("study", "samplers")
    yield Heading(1, "Samplers compared")
    if study is None:
        yield Missing("The samplers have not been compared on this run.", again)
        return
    if not source.is_of_now(study["step"]):
        yield Missing(
            f"There is no comparison of the finished run, only one of step {study['step']:,}.",
            again,
        )
        return
    rows = study["rows"]
    if len(rows) < study["cases"]:
        yield Missing(
            f"The comparison is not whole: {len(rows)} of {study['cases']} cases have been drawn.",
            again,
        )
    scored = all("frechet" in row for row in rows)
    yield Text(
        f"Each sampler drew {study['n']:,} images with this run's model"
        + ("" if study["step"] == source.steps else f" of step {study['step']:,}")
        + ", from the same noise"
        + (" and the same labels" if source.config.conditional else "")
        + ", without guidance. _Spread_ is how different its images are from one another (the root mean square difference from the mean"
        + (" of their class" if source.config.conditional else "")
        + ", in grey levels); "
        f"real images have {study['real_spread']:.1f}."
    )
    yield Table(
        (
            "sampler",
            "steps",
            "calls",
            *(("Fréchet distance", "95% interval") if scored else ()),
            "spread",
            "ms an image",
        ),
        [
            (
                plain(WAYS[row["sampler"]]),
                str(row["steps"]),
                str(row["calls"]),
                *(distance(row) if scored else ()),
                f"{row['spread']:.1f}",
                f"{1000 * row['seconds_per_image']:.1f}",
            )
            for row in rows
        ]
        + [
            (
                "real images",
                "-",
                "-",
                *((number(study["real_frechet"]), "-") if scored else ()),
                f"{study['real_spread']:.1f}",
                "-",
            )
        ],
        f"Of {study['n']:,} images each. A small sample's Fréchet distance is biased upwards, also that of real images: compare the rows with one another.",
        (1, 2, 3, 4, 5, 6) if scored else (1, 2, 3, 4),
    )
    if scored:
        yield Figure(
            "samplers",
            "Quality against network calls.",
            "Curves of the Fréchet distance against network calls, one for each sampler.",
        )
    if rows:
        yield Figure(
            "ways",
            "The same noises, drawn by each sampler with the most calls that were tried.",
            "Rows of drawn images, a row for each sampler.",
        )
    answer = list(verdicts(study, scored, len(source.about.facts.groups)))
    if answer:
        yield Heading(2, "Which advantages and disadvantages has each?")
        yield Text("\n".join(f"- {verdict}" for verdict in answer))


def verdicts(study: dict[str, Any], scored: bool, groups: int) -> Iterator[str]:
    """The answer to the handout's question, as far as the figures are there and bear it out; for a network that is told apart so many groups."""
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in study["rows"]:
        by_name.setdefault(row["sampler"], {})[int(row["calls"])] = row

    def both(one: str, other: str) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """The rows of two samplers with the same number of calls, the fewest first."""
        a, b = by_name.get(one, {}), by_name.get(other, {})
        return [(calls, a[calls], b[calls]) for calls in sorted(a.keys() & b.keys())]

    if pairs := both("mean", "ddpm"):
        _, mean, ddpm = pairs[-1]
        if mean["spread"] < 0.8 * ddpm["spread"]:
            yield (
                f"(7) collapses: its images have a spread of {mean['spread']:.1f}, those of (8) of {ddpm['spread']:.1f}, real ones of "
                f"{study['real_spread']:.1f}. It needs no noise on the way, and that is its only advantage."
            )
        else:
            yield (
                f"On this run (7) has not collapsed (a spread of {mean['spread']:.1f} against {ddpm['spread']:.1f} of (8)), though in theory its noise "
                "shrinks too fast"
                + (
                    f": it is told for each image which of {groups} groups it is of, and these differ."
                    if groups
                    else "."
                )
            )
    if pairs := both("ddpm-printed", "ddpm"):
        _, printed, ddpm = pairs[-1]
        if printed["spread"] < 0.97 * ddpm["spread"]:
            yield f"(8) as printed adds too little noise, and its images are less varied than they should be ({printed['spread']:.1f})."
        else:
            yield f"(8) as printed is about as varied as (8) here ({printed['spread']:.1f})."
    if not scored:
        return
    best = min(study["rows"], key=lambda row: float(row["frechet"]))
    close = [
        row
        for row in study["rows"]
        if row is not best and row["frechet_low"] <= best["frechet_high"]
    ]
    others = len(study["rows"]) - 1
    yield (
        f"The smallest Fréchet distance, {number(best['frechet'])}, is that of {WAYS[best['sampler']]} with {best['calls']} calls"
        + (
            f"; these many images cannot tell it from {len(close)} of the {others} other rows."
            if close
            else ", clearly."
        )
    )

    pairs = both("ddpm", "ddim")
    most_and_fewest = [("many", *pairs[-1]), ("few", *pairs[0])] if len(pairs) > 1 else []
    for words, calls, ddpm, ddim in most_and_fewest:
        how = f"With {words} calls ({calls}), (8) has {number(ddpm['frechet'])} and DDIM {number(ddim['frechet'])}"
        if (
            ddpm["frechet_low"] <= ddim["frechet_high"]
            and ddim["frechet_low"] <= ddpm["frechet_high"]
        ):
            yield f"{how}: no difference that these many images could show."
        elif ddpm["frechet"] < ddim["frechet"]:
            yield f"{how}: the fresh noise of (8) corrects errors that the network made on the way, which DDIM carries to the end."
        else:
            yield f"{how}: DDIM makes the most of its steps, as it takes away as much noise as there is to lose, and adds none."
    yield (
        "DDIM, Heun's method and DPM-Solver++ 2M give the same image for the same noise each time, so two noises can be mixed, and an image found "
        "again; (8) and the stochastic DPM-Solver++ add fresh noise, and do not."
    )


STUDIES = {
    "schedules": "noise schedules",
    "predictions": "predictions",
    "subset": "amounts of data",
}


def trained(source: Source) -> Iterator[Block]:
    yield Heading(1, "Other choices compared")
    if not source.trainings:
        yield Missing(
            "Other schedules have not been tried, nor other predictions or amounts of data (studies of those are `predictions` and `subset`).",
            source.run.command_for("study", "schedules"),
        )
    for name, study in source.trainings.items():
        yield from comparison(name, study, source.run)


def comparison(name: str, study: dict[str, Any], run: Run) -> Iterator[Block]:
    """One study of trainings."""
    rows = study["rows"]
    if not rows:
        yield Missing(
            f"The comparison of {STUDIES[name]} has only begun.", run.command_for("study", name)
        )
        return
    scored, audited = all("frechet" in row for row in rows), all("near" in row for row in rows)
    also = "".join(
        f", with {coded(field)} {coded(value)}" for field, value in study["also"].items()
    )
    yield Heading(2, f"Comparing {STUDIES[name]}")
    yield Text(
        f"Each was trained for {study['minutes_each']:.1f} minutes, with this run's other hyperparameters{also}. Losses of different schedules and predictions "
        "are not the same thing, so what is compared is the mean squared error of the guess $hat(x)_0$ at given noise levels (log SNR), of images that were "
        "not trained on, with the same noise in all rows"
        + (
            ", and the Fréchet distance of 1,000 drawn images"
            + (
                f" (as many real ones have {number(rows[0]['floor'])})"
                if rows[0].get("floor")
                else ""
            )
            if scored
            else ""
        )
        + "."
        + (
            " _Near_ is the share of drawn images that are suspiciously near to one training image, and not to others, and in brackets that of real ones."
            if name == "subset" and audited
            else ""
        )
    )
    levels = rows[0]["levels"]
    wide = [i for i, level in enumerate(levels) if level in (-4, 0, 4)]
    audited = audited and name == "subset"

    def cells(row: dict[str, Any]) -> Iterator[str]:
        yield "all" if row["value"] is None else coded(row["value"])
        yield str(row["seed"])
        yield f"{row['steps']:,}"
        yield from (f"{row['unseen'][i]:.4f}" for i in wide)
        if scored:
            yield from distance(row)
        if audited:
            yield f"{row['near']:.1%} ({row['near_expected']:.1%}){', copies' if row['copies'] else ''}"

    header = (
        study["field"],
        "seed",
        "steps",
        *(f"error at {levels[i]:g}" for i in wide),
        *(("Fréchet distance", "95% interval") if scored else ()),
        *(("near",) if audited else ()),
    )
    yield Table(
        header,
        [tuple(cells(row)) for row in rows],
        "The same budget for each. Intervals say what other draws of images would give; another seed of training can differ by more.",
        tuple(range(1, len(header))),
    )
    yield Figure(
        f"{name}-compared",
        "Errors of the guess, relative to the smallest of all at each noise level."
        + (" Dotted: of images that were trained on." if name == "subset" else ""),
        f"Curves of the error against the log-SNR, one for each of the {STUDIES[name]}.",
        0.75,
    )
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    yield Figure(
        f"{name}-images",
        "The same noises, drawn after each training"
        + (f" with seed {rows[0]['seed']}." if len(first) < len(rows) else "."),
        f"Rows of drawn images, a row for each of the {STUDIES[name]}.",
    )
    if scored and len(first) > 1:
        yield Text(best_of(study))


def best_of(study: dict[str, Any]) -> str:
    """Which value had the smallest mean distance over its seeds, and which others cannot be told from it."""
    by_value: dict[Any, list[dict[str, Any]]] = {}
    for row in study["rows"]:
        by_value.setdefault(row["value"], []).append(row)
    mean = {
        value: sum(row["frechet"] for row in rows) / len(rows) for value, rows in by_value.items()
    }

    def named(value: Any) -> str:
        return "all of the data" if value is None else coded(value)

    best = min(mean, key=lambda value: mean[value])
    top = max(row["frechet_high"] for row in by_value[best])
    close = [
        v for v in by_value if v != best and min(row["frechet_low"] for row in by_value[v]) <= top
    ]
    return f"The smallest Fréchet distance, {number(mean[best])}, is that of {named(best)}." + (
        f" These draws cannot tell it from {', '.join(map(named, close))}."
        if close
        else " No other comes as near."
    )


def limits(source: Source) -> Iterator[Block]:
    yield Heading(1, "Limits, and how to repeat it")
    yield Text(
        "The features by which images are compared come from a classifier: what it does not see, these figures do not measure. Intervals say what "
        "other draws of images would give, not what another training would. The bound and the ODE's likelihood are of different models, and no order "
        "holds between them."
    )
    if source.finished:
        yield Command(
            "This command repeats the run to the same weights, on the same machine and versions:",
            shlex.join(["undiffuse", "train", "--replay", str(source.run.path), "--out", "NEW"]),
        )


REFERENCES = (
    ("Ho, Jain & Abbeel 2020", "Denoising Diffusion Probabilistic Models", "2006.11239"),
    ("Song, Meng & Ermon 2021", "Denoising Diffusion Implicit Models", "2010.02502"),
    ("Nichol & Dhariwal 2021", "Improved Denoising Diffusion Probabilistic Models", "2102.09672"),
    ("Kingma, Salimans, Poole & Ho 2021", "Variational Diffusion Models", "2107.00630"),
    (
        "Salimans & Ho 2022",
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        "2202.00512",
    ),
    ("Ho & Salimans 2022", "Classifier-Free Diffusion Guidance", "2207.12598"),
    (
        "Lu et al. 2022",
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        "2211.01095",
    ),
    (
        "Karras et al. 2022",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        "2206.00364",
    ),
    ("Luo 2022", "Understanding Diffusion Models: A Unified Perspective", "2208.11970"),
    (
        "Heusel et al. 2017",
        "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        "1706.08500",
    ),
    (
        "Kynkäänniemi et al. 2019",
        "Improved Precision and Recall Metric for Assessing Generative Models",
        "1904.06991",
    ),
    (
        "Meehan, Chaudhuri & Dasgupta 2020",
        "A Non-Parametric Test to Detect Data-Copying in Generative Models",
        "2004.05675",
    ),
    ("Bińkowski, Sutherland, Arbel & Gretton 2018", "Demystifying MMD GANs", "1801.01401"),
    (
        "Naeem et al. 2020",
        "Reliable Fidelity and Diversity Metrics for Generative Models",
        "2002.09797",
    ),
    (
        "Song, Sohl-Dickstein et al. 2021",
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        "2011.13456",
    ),
    (
        "Esser et al. 2024",
        "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        "2403.03206",
    ),
    (
        "Karras et al. 2024",
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        "2312.02696",
    ),
    ("Liu et al. 2025", "Muon is Scalable for LLM Training", "2502.16982"),
)


def references(source: Source) -> Iterator[Block]:
    yield Heading(1, "References")
    yield Text(
        "\n".join(
            f'- {who}: _{title}_. #link("https://doi.org/10.48550/arXiv.{number}")[arXiv:{number}]'
            for who, title, number in REFERENCES
        )
    )
