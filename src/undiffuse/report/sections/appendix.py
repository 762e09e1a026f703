"""The appendix: settings without effect, what the run cost, and the code that was not yet shown."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.data import clusters
from undiffuse.diffusion import grids, guidance, process, sampling, schedule, step, walk
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.grids import GRIDS
from undiffuse.measuring import distances, novelty
from undiffuse.nets import NETWORKS
from undiffuse.report.blocks import Block, Heading, Text
from undiffuse.report.sections import hyperparameters
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source
from undiffuse.training import averages, loop
from undiffuse.training.optimizers import OPTIMIZERS


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "Appendix")
    yield Heading(2, "Other settings, and cost")
    yield from hyperparameters.appendix(source)
    yield Heading(2, "More code")
    yield Text(
        "The text above shows the parts of the code that it explains. This is the rest of what a "
        "reader needs to follow the computation. Left out everywhere are "
        "the descriptions of functions (docstrings), which the text replaces, and checks that only "
        "report an error. The whole code is in the package undiffuse, in the files and lines that "
        "stand above each listing."
    )
    yield Text("Noise levels, times, and small helpers:")
    yield from code(
        schedule.noise_level, schedule.log_snr, process.expand, process.eps_from, grids.time_grid,
        GRIDS.function(source.config.grid.partition(":")[0]), guidance.clipped,
    )  # fmt: skip
    yield Text("How a chain of sampling steps is run:")
    yield from code(step.Step, walk.walk, sampling.trajectory, sampling.denoise_function)
    network = NETWORKS.function(source.config.net.partition(":")[0])
    yield Text("How the network is put together:")
    yield from code(network.__init__ if "features" in dir(network) else network)
    if source.about.conditioning.kind:
        yield Text("The clusters, and how one is drawn for an image:")
        yield from code(clusters.k_means, Conditioning.sample)
    yield Text("The optimiser's groups, and the width of the average:")
    yield from code(
        OPTIMIZERS.function(source.config.optimizer.partition(":")[0]), averages.ema_exponent
    )
    yield Text("The loop around the training step, and what it does where a number is not finite:")
    yield from code(loop.Loop.records, loop.Loop.roll_back)
    if source.evaluation:
        yield Text("How samples are compared with real images:")
        yield from code(distances.frechet, novelty.audit)
