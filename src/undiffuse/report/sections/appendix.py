"""The appendix: settings without effect, what the run cost, and the code that was not yet shown."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.diffusion import sampling, step, walk
from undiffuse.measuring import distances, novelty
from undiffuse.nets import NETWORKS
from undiffuse.report.blocks import Block, Heading, Text
from undiffuse.report.sections import hyperparameters
from undiffuse.report.sections._shared import code
from undiffuse.report.source import Source


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
    yield Text("How a chain of sampling steps is run:")
    yield from code(step.Step, walk.walk, sampling.trajectory, sampling.denoise_function)
    yield Text("How the network is put together:")
    yield from code(NETWORKS.function(source.config.net.partition(":")[0]))
    if source.evaluation:
        yield Text("How samples are compared with real images:")
        yield from code(distances.frechet, novelty.audit)
