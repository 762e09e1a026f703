"""Threads that compute side by side: in order, in the caller's name, with the same bits."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from undiffuse.base.engine import Engine
from undiffuse.base.team import by_a_member, side_by_side
from undiffuse.diffusion.objectives.denoising import DenoisingBatch, denoising_loss
from undiffuse.training.clock import Clock
from undiffuse.training.experiment import make_experiment
from undiffuse.training.loop import fit
from undiffuse.training.presets import make_config
from undiffuse.training.step import Gradient


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_members_share_the_items_and_results_come_in_order() -> None:
    together = threading.Barrier(2)

    def wait(item: int) -> tuple[int, str]:
        together.wait(timeout=30)  # passed only where two items are computed at once
        return item, threading.current_thread().name

    found = side_by_side(wait, range(6))
    assert [item for item, _ in found] == list(range(6))
    assert len({name for _, name in found}) == 2
    assert threading.current_thread().name not in {name for _, name in found}


def test_no_items_and_one_item() -> None:
    assert side_by_side(str, []) == []
    assert side_by_side(str, [7]) == ["7"]


def test_members_have_one_thread_of_torch_each_and_the_caller_keeps_its_own() -> None:
    assert set(side_by_side(lambda _: torch.get_num_threads(), range(4))) == {1}
    assert torch.get_num_threads() == 2
    later: list[int] = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [2]


def test_four_threads_are_two_members_with_two_each() -> None:
    torch.set_num_threads(4)
    assert set(side_by_side(lambda _: torch.get_num_threads(), range(4))) == {2}


def test_pieces_within_pieces() -> None:
    """Both members are busy with an outer piece, so nobody is free to help."""
    together = threading.Barrier(2)

    def outer(a: int) -> list[int]:
        together.wait(timeout=30)
        return side_by_side(lambda b: 10 * a + b, range(3))

    assert side_by_side(outer, (1, 2)) == [[10, 11, 12], [20, 21, 22]]
    assert by_a_member(side_by_side, str, (1, 2)) == ["1", "2"]


def test_callers_in_several_threads() -> None:
    found: dict[int, list[int]] = {}

    def call(k: int) -> None:
        found[k] = side_by_side(lambda item: k * item, range(20))

    callers = [threading.Thread(target=call, args=(k,)) for k in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert found == {k: [k * item for item in range(20)] for k in range(5)}


def test_an_error_is_raised_and_no_further_piece_is_begun() -> None:
    begun: list[int] = []

    def fail(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match=r"item [01]"):
        side_by_side(fail, range(100))
    assert len(begun) <= 2
    assert side_by_side(str, range(3)) == ["0", "1", "2"]  # the team is as good as before


def test_an_interrupted_caller_begins_no_further_piece() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def piece(item: int) -> None:
        begun.append(item)
        if item == 0:
            time.sleep(1)  # until the caller waits
            os.kill(os.getpid(), signal.SIGINT)  # as the terminal does
        go_on.wait(timeout=10)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(piece, range(100))
    go_on.set()
    assert side_by_side(str, range(3)) == ["0", "1", "2"]
    assert len(begun) <= 2


def test_the_callers_contexts_do_not_reach_a_member() -> None:
    def contexts() -> tuple[bool, bool, bool]:
        return (
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    with torch.autocast("cpu"), torch.inference_mode():
        assert by_a_member(contexts) == (False, True, False)


class Unused(nn.Module):
    """A network with a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        found: torch.Tensor = self.conv(x).tanh()
        return found


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_gradient_of_the_shards_is_that_of_the_batch(count: int) -> None:
    network = Unused().double()
    x, target = torch.randn(2, count, 1, 6, 6, dtype=torch.float64)
    batch = DenoisingBatch(x, torch.zeros(count), target, torch.rand(count, dtype=torch.float64))
    denoising_loss(network, batch).mean().backward()
    expected = network.conv.weight.grad
    assert expected is not None
    gradient = Gradient(lambda some: denoising_loss(network, some), network)
    for _ in range(2):  # the shards of the first batch take turns
        value = gradient(batch)
        assert network.conv.weight.grad is not None
        torch.testing.assert_close(network.conv.weight.grad, expected, rtol=1e-12, atol=1e-12)
        assert network.idle.grad is None
        torch.testing.assert_close(value, denoising_loss(network, batch).mean().detach())


def trained(threads: int, net: str = "unet", steps: int = 4) -> str:
    """The hash of the weights after a few steps with so many threads of torch."""
    torch.set_num_threads(threads)
    config = make_config(
        net=net, steps=steps, subset=600, batch_size=32, snapshots=2, snapshot_images=2
    )
    experiment = make_experiment(config)
    for _ in fit(experiment, Clock(lambda: 0.0, config.decay, steps=steps), Engine("fp32")):
        pass
    weights = experiment.state.network.state_dict().values()
    return hashlib.sha256(b"".join(w.contiguous().numpy().tobytes() for w in weights)).hexdigest()


def test_the_same_bits_with_one_two_and_three_threads() -> None:
    assert trained(1) == trained(2) == trained(3)


def test_the_same_bits_where_the_network_draws_random_numbers() -> None:
    """Its shards take turns. The default generator of torch belongs to all threads."""
    assert trained(2, "unet:dropout=0.3") == trained(1, "unet:dropout=0.3") != trained(2)
