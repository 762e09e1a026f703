"""The papers that the report refers to."""

from __future__ import annotations

from collections.abc import Iterator

from undiffuse.report.blocks import Block, Heading, Text
from undiffuse.report.source import Source

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
        "Ravuri & Vinyals 2019",
        "Classification Accuracy Score for Conditional Generative Models",
        "1905.10887",
    ),
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


def section(source: Source) -> Iterator[Block]:
    yield Heading(1, "References")
    yield Text(
        "\n".join(
            f'- {who}: _{title}_. #link("https://doi.org/10.48550/arXiv.{number}")[arXiv:{number}]'
            for who, title, number in REFERENCES
        )
    )
