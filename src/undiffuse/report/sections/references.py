"""The papers that the report refers to: those of `REFERENCES` that its text cites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from undiffuse.report.blocks import Block, Code, Heading, Text

ARXIV = "https://doi.org/10.48550/arXiv."

REFERENCES = {
    "Ba et al. 2016": ("Layer Normalization", "1607.06450"),
    "Bao et al. 2023": ("All are Worth Words: A ViT Backbone for Diffusion Models", "2209.12152"),
    "Bińkowski et al. 2018": ("Demystifying MMD GANs", "1801.01401"),
    "Chen et al. 2023": (
        "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image "
        "Synthesis",
        "2310.00426",
    ),
    "Dieleman et al. 2022": ("Continuous Diffusion for Categorical Data", "2211.15089"),
    "Dong et al. 2022": (
        "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows",
        "2107.00652",
    ),
    "Esser et al. 2024": (
        "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        "2403.03206",
    ),
    "Hang et al. 2023": ("Efficient Diffusion Training via Min-SNR Weighting", "2303.09556"),
    "He et al. 2016": ("Deep Residual Learning for Image Recognition", "1512.03385"),
    "Heusel et al. 2017": (
        "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        "1706.08500",
    ),
    "Ho & Salimans 2022": ("Classifier-Free Diffusion Guidance", "2207.12598"),
    "Ho et al. 2020": ("Denoising Diffusion Probabilistic Models", "2006.11239"),
    "Hoogeboom et al. 2024": ("Simpler Diffusion (SiD2)", "2410.19324"),
    "Jabri et al. 2022": ("Scalable Adaptive Computation for Iterative Generation", "2212.11972"),
    "Jordan et al. 2024": (
        "Muon: An Optimizer for Hidden Layers in Neural Networks",
        "https://kellerjordan.github.io/posts/muon",
    ),
    "Karras et al. 2022": (
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        "2206.00364",
    ),
    "Karras et al. 2024": (
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        "2312.02696",
    ),
    "Kingma & Ba 2015": ("Adam: A Method for Stochastic Optimization", "1412.6980"),
    "Kingma & Gao 2023": (
        "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation",
        "2303.00848",
    ),
    "Kingma et al. 2021": ("Variational Diffusion Models", "2107.00630"),
    "Kynkäänniemi et al. 2019": (
        "Improved Precision and Recall Metric for Assessing Generative Models",
        "1904.06991",
    ),
    "Kynkäänniemi et al. 2024": (
        "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in "
        "Diffusion Models",
        "2404.07724",
    ),
    "LeCun et al. 1998": (
        "Gradient-Based Learning Applied to Document Recognition",
        "https://doi.org/10.1109/5.726791",
    ),
    "Liu et al. 2022": (
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        "2209.03003",
    ),
    "Liu et al. 2025": ("Muon is Scalable for LLM Training", "2502.16982"),
    "Loshchilov & Hutter 2019": ("Decoupled Weight Decay Regularization", "1711.05101"),
    "Lu et al. 2022": (
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        "2211.01095",
    ),
    "Luo 2022": ("Understanding Diffusion Models: A Unified Perspective", "2208.11970"),
    "Meehan et al. 2020": (
        "A Non-Parametric Test to Detect Data-Copying in Generative Models",
        "2004.05675",
    ),
    "Naeem et al. 2020": (
        "Reliable Fidelity and Diversity Metrics for Generative Models",
        "2002.09797",
    ),
    "Nichol & Dhariwal 2021": (
        "Improved Denoising Diffusion Probabilistic Models",
        "2102.09672",
    ),
    "Peebles & Xie 2023": ("Scalable Diffusion Models with Transformers", "2212.09748"),
    "Ravuri & Vinyals 2019": (
        "Classification Accuracy Score for Conditional Generative Models",
        "1905.10887",
    ),
    "Ronneberger et al. 2015": (
        "U-Net: Convolutional Networks for Biomedical Image Segmentation",
        "1505.04597",
    ),
    "Rozet et al. 2024": (
        "Learning Diffusion Priors from Observations by Expectation Maximization",
        "2405.13712",
    ),
    "Salimans & Ho 2022": (
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        "2202.00512",
    ),
    "Sohl-Dickstein et al. 2015": (
        "Deep Unsupervised Learning using Nonequilibrium Thermodynamics",
        "1503.03585",
    ),
    "Song et al. 2020": (
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        "2011.13456",
    ),
    "Song et al. 2021": ("Denoising Diffusion Implicit Models", "2010.02502"),
    "Vaswani et al. 2017": ("Attention Is All You Need", "1706.03762"),
}
"""As the text cites a paper -> (its title, its number at arXiv or its address)."""


def section(of: Iterable[Block]) -> Iterator[Block]:
    """The papers that these blocks cite."""
    text = "\n".join(
        str(getattr(block, field.name))
        for block in of
        if not isinstance(block, Code)
        for field in fields(block)
    )
    text = text.replace("\\", "").replace(" (2", " 2")  # "Luo (2022)" is cited too
    used = {who: paper for who, paper in REFERENCES.items() if who in text}
    if used:
        yield Heading(1, "References")
        yield Text("\n".join(entry(who, *paper) for who, paper in used.items()))


def entry(who: str, title: str, number: str) -> str:
    """A line of the list. number: at arXiv, or an address."""
    address = number if number.startswith("https:") else f"{ARXIV}{number}"
    shown = number.removeprefix("https://").removeprefix("doi.org/")
    label = shown if address == number else f"arXiv:{number}"
    return f'- {who}: _{title}_. #link("{address}")[{label}]'
