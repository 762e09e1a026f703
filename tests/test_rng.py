"""Random streams, which are a function of (seed, purpose, indices) and of nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from undiffuse.base.rng import normal, normal_each, stream

KEYS = [
    *itertools.product((0, 1, 2**40), ("noise", "start", "noise/1"), (0, 1, 2**63)),
    (0, "noise"),  # the same as index 0
    (0, "noise", 0, 1),
    (0, "noise", 1, 2),
    (0, "noise", 2, 1),
    (11, "noise"),
    (1, "1noise"),
    (1, "1/noise"),
]


def test_a_stream_is_its_keys() -> None:
    ahead = [stream(*key).random(5) for key in KEYS]
    for key, numbers in reversed(list(zip(KEYS, ahead, strict=True))):
        assert np.array_equal(stream(*key).random(5), numbers)


def test_other_keys_other_numbers() -> None:
    found = {tuple(stream(*key).integers(2**63, size=1)) for key in KEYS}
    assert len(found) == len(KEYS) - 1  # no index is index 0
    with pytest.raises(ValueError, match="at most two indices"):
        stream(0, "noise", 1, 2, 3)


def test_neighbouring_streams_are_independent() -> None:
    """Neighbours in seed, index and purpose have no correlation and share no number."""
    n = 4000
    for keys in [
        [(seed, "a", 0) for seed in range(8)],
        [(0, "a", index) for index in range(8)],
        [(0, "a", 0, index) for index in range(8)],
        [(0, purpose, 0) for purpose in "abcdefgh"],
    ]:
        correlation = np.corrcoef([stream(*key).standard_normal(n) for key in keys])
        assert np.abs(correlation - np.eye(8)).max() < 5 / np.sqrt(n)
        assert len(np.unique([stream(*key).integers(2**63, size=n) for key in keys])) == 8 * n


def test_normal_numbers() -> None:
    x = normal((50, 40, 20), 3, "moments", 7)
    assert x.dtype == torch.float32
    assert torch.equal(x, normal((50, 40, 20), 3, "moments", 7))
    n = x.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert x.double().pow(power).mean().item() == pytest.approx(
            moment, abs=5 * (variance / n) ** 0.5
        )


def test_each_sample_has_noise_of_its_own() -> None:
    """test_properties.py tests that the batch does not change it."""
    together = normal_each(range(5), (1, 2, 3), 0, "noise", 9)
    assert len(together.unique(dim=0)) == 5
    for other in [(1, "noise", 9), (0, "start", 9), (0, "noise", 8)]:
        assert not torch.equal(normal_each(range(5), (1, 2, 3), *other), together)
