"""Hyperparameters that are decided from the data: the right values, and kept by a run for good."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import undiffuse
from undiffuse.base.errors import UserError
from undiffuse.data.loading import load_dataset
from undiffuse.data.spectrum import variances
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.schedule import SCHEDULES, noise_level
from undiffuse.diffusion.times import TIMES
from undiffuse.nets import NETWORKS
from undiffuse.report.sections.hyperparameters import hyperparameters
from undiffuse.report.source import read
from undiffuse.runs.folder import Run
from undiffuse.runs.signals import Interrupted
from undiffuse.training import from_data
from undiffuse.training.fields import BY_RULE
from undiffuse.training.from_data import Measured
from undiffuse.training.presets import make_config
from undiffuse.training.records import StepTaken

RNG = np.random.default_rng(0)


def measured(x: np.ndarray) -> Measured:
    return Measured(as_images(x))


def as_images(x: np.ndarray) -> torch.Tensor:
    """x (N, H, W) in [-1, 1] as images."""
    return torch.from_numpy(np.rint((x + 1) * 127.5).clip(0, 255).astype(np.uint8))[:, None]


@pytest.mark.parametrize("count", [1500, 20])  # more images than pixels, and fewer
def test_the_variances_are_those_of_the_principal_components(count: int) -> None:
    images = as_images(RNG.normal(0, 0.2, (count, 6, 5)) * np.linspace(0.1, 1, 5))
    x = images.flatten(1).double() / 127.5 - 1
    expected = np.linalg.eigvalsh(np.cov(x.numpy(), rowvar=False, bias=True))
    expected = expected[-min(30, count - 1) :]
    assert variances(images).numpy() == pytest.approx(expected[expected > 5e-6], rel=1e-5)


def levels_of(spec: str, schedule: str = "cosine") -> torch.Tensor:
    """The log-SNRs of times, by quantile."""
    u = (torch.arange(999, dtype=torch.float64) + 0.5) / 999
    return noise_level(SCHEDULES[schedule], TIMES[spec](u)).log_snr


@pytest.mark.parametrize("schedule", ["cosine", "linear", "flow"])
@pytest.mark.parametrize("std", [0.05, 0.2, 0.5])
def test_white_images_are_decided_at_their_own_level(schedule: str, std: float) -> None:
    """All components have the variance std^2, so a log-SNR of -log std^2 decides all of them.

    The spread is that of digits, the smallest."""
    images = as_images(RNG.uniform(-1, 1, (2000, 8, 8)) * 3**0.5 * std)
    spec, why = from_data.times(make_config(schedule=schedule), Measured(images))
    found = levels_of(spec, schedule)
    assert found.median().item() == pytest.approx(-2 * np.log(std), abs=0.35)
    assert found.std().item() == pytest.approx(1.9, abs=0.4)
    assert "principal components" in why


def test_fine_images_are_trained_at_less_noise_than_coarse_ones() -> None:
    coarse = 0.5 * np.kron(RNG.uniform(-1, 1, (500, 4, 4)), np.ones((4, 4)))
    fine = 0.2 * RNG.uniform(-1, 1, (500, 16, 16))
    both = [from_data.times(make_config(), measured(x))[0] for x in (coarse, coarse + fine, fine)]
    medians = [levels_of(spec).median().item() for spec in both]
    assert medians == sorted(set(medians))


def test_images_of_few_large_components_are_trained_like_digits() -> None:
    """Here a colour of the ground has most of the variance."""
    ground = np.kron(RNG.uniform(-1, 1, (500, 1, 1)), np.ones((16, 16)))
    shapes = 0.1 * RNG.uniform(-1, 1, (500, 16, 16))
    spec, why = from_data.times(make_config(), measured(0.9 * ground + shapes))
    assert spec == "logit-normal:mean=0.4,std=1.2"
    assert "MNIST" in why


def test_mnist_is_trained_at_the_levels_that_were_tuned_on_it() -> None:
    spec, _ = from_data.times(make_config(), Measured(load_dataset("mnist").images))
    assert spec == "logit-normal:mean=0.4,std=1.2"


@pytest.mark.parametrize("ends", ["snr_max=-5,snr_min=-10", "snr_max=14,snr_min=12"])
def test_a_schedule_without_the_levels_of_the_images_has_uniform_times(ends: str) -> None:
    config = make_config(schedule=f"log-linear:{ends}")
    assert from_data.times(config, Measured(load_dataset("mnist").images))[0] == "uniform"


def test_the_spectrum_is_measured_once_and_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(from_data, "variances", lambda images: seen.append(1) or variances(images))
    images = as_images(RNG.uniform(-1, 1, (50, 8, 8)))
    from_data.decided(make_config(), images)
    assert len(seen) == 1
    from_data.decided(make_config(times="uniform", guidance_limit=1.5), images)
    assert len(seen) == 1


def test_images_that_are_all_the_same_have_a_rule_too() -> None:
    spec, _ = from_data.times(make_config(), measured(np.zeros((5, 8, 8))))
    assert spec == "logit-normal:mean=0.4,std=1.2"


@pytest.mark.parametrize(("conditional", "usual"), [(True, 1.5), (False, 2.0)])
def test_images_of_finer_detail_are_guided_less(conditional: bool, usual: float) -> None:
    ground = 0.9 * np.kron(RNG.uniform(-1, 1, (500, 1, 1)), np.ones((16, 16)))
    fine = RNG.uniform(-1, 1, (500, 16, 16))
    config = make_config(conditional=conditional)
    images = [as_images(ground), load_dataset("mnist").images, *map(as_images, (fine, 0.3 * fine))]
    limits = [from_data.guidance_limit(config, Measured(some))[0] for some in images]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == 2
    assert limits[1] == pytest.approx(usual, abs=0.02)
    assert limits[2] < usual - 0.1
    assert limits[3] == 1.0


@pytest.mark.parametrize(
    ("side", "levels", "lowest"),
    [
        (8, 2, 2),
        (28, 2, 7),
        (32, 2, 8),
        (40, 2, 10),
        (64, 3, 8),
        (96, 4, 6),
        (128, 4, 8),
        (256, 5, 8),
    ],
)
def test_larger_images_get_more_levels(side: int, levels: int, lowest: int) -> None:
    images = torch.zeros(1, 3, side, side // 2, dtype=torch.uint8)
    spec, why = from_data.net(make_config(), Measured(images))
    if levels == 2:
        assert spec == "unet"
        return
    options = NETWORKS.options(spec)
    assert {len(value) for value in options.values()} == {levels}
    assert math.ceil(side / 2**levels) == lowest
    assert f"{levels} levels, the lowest of {lowest} pixels" in why
    NETWORKS.check(spec)


def test_a_network_that_was_chosen_stays() -> None:
    large = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    for net in ("unet:heads=4", "dit"):
        config, why = from_data.decided(make_config(net=net), large)
        assert (config.net, "net" in why) == (net, False)
    config, why = from_data.decided(make_config(), large)
    assert config.net == "unet:channels=32/64/128,blocks=1/1/3,attention=0/0/1"
    assert "3 levels" in why["net"]


def test_the_limit_of_guidance_is_what_limits_it() -> None:
    conditioning = Conditioning(("a", "b"))
    for limit in (1.0, 1.25):
        config = make_config(conditional=True, guidance_limit=limit)
        assert config.sampling(1, conditioning).guidance == limit
    assert make_config(guidance=3.0, guidance_limit=1.2).sampling(1, conditioning).guidance == 3


@pytest.fixture
def auto(tiny: dict[str, Any]) -> dict[str, Any]:
    return {**tiny, "times": "auto", "guidance_limit": "auto"}


def other_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version or machine might decide."""
    monkeypatch.setitem(from_data.RULES, "times", lambda *_: ("uniform", "another rule"))


def test_a_run_says_what_was_decided_and_why(
    tmp_path: Path, auto: dict[str, Any], tiny: dict[str, Any]
) -> None:
    run = Run(undiffuse.train(tmp_path / "run", **auto))
    about = run.about()
    assert about.config.times.startswith("logit-normal:mean=")
    assert about.decided.keys() == {"times", "guidance_limit"}
    assert about.reasons["times"] == about.decided["times"]
    assert "--times" not in run.command()
    rows = {row[0] for _, row in hyperparameters(read(run))}
    assert {"`times`", "`guidance-limit`"} <= rows  # no asterisk: nobody changed them
    values = {name: getattr(about.config, name) for name in about.decided}
    same = undiffuse.train(tmp_path / "same", **{**tiny, **values})
    assert Run(same).model_path.read_bytes() == run.model_path.read_bytes()
    assert Run(same).about().reasons["times"] == "chosen for this run"
    assert f"--times {about.config.times}" in Run(same).command()


def test_what_was_decided_stays(
    tmp_path: Path, auto: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed, replayed or trained for longer keeps its values."""
    whole = Run(undiffuse.train(tmp_path / "whole", **auto))
    decided = whole.about().config.times

    def stop(record: Any) -> None:
        if isinstance(record, StepTaken) and record.step == 5:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        undiffuse.train(tmp_path / "run", **auto, watch=stop)
    other_rule(monkeypatch)
    resumed = Run(undiffuse.train(tmp_path / "run", **auto))
    assert resumed.model_path.read_bytes() == whole.model_path.read_bytes()
    longer = Run(undiffuse.train(tmp_path / "longer", longer=whole.path, steps=3, compile="off"))
    assert longer.about().config.times == resumed.about().config.times == decided
    assert longer.about().decided == whole.about().decided
    assert Run(undiffuse.train(tmp_path / "new", **auto)).about().config.times == "uniform"


def test_another_value_is_another_run(tmp_path: Path, auto: dict[str, Any]) -> None:
    undiffuse.train(tmp_path / "run", **auto)
    with pytest.raises(UserError, match=r"another configuration .*times: .*, uniform asked"):
        undiffuse.train(tmp_path / "run", **{**auto, "times": "uniform"})


def test_only_what_has_a_rule_may_be_auto() -> None:
    with pytest.raises(UserError, match="there is no schedule called 'auto'"):
        make_config(schedule="auto")


def test_each_rule_has_its_field() -> None:
    assert set(from_data.RULES) == set(BY_RULE)
