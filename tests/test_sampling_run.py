"""Sampling from a finished run: the same image from the same seed, what is refused, the files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import undiffuse
from conftest import write_idx
from undiffuse.base.errors import UserError
from undiffuse.base.images import as_array, columns_for, image_grid, tiles
from undiffuse.base.images import as_picture as picture
from undiffuse.diffusion.sampling import EVERYWHERE
from undiffuse.diffusion.step import SAMPLERS
from undiffuse.model import Request
from undiffuse.nets import NETWORKS
from undiffuse.runs import destinations

# (N, 1, H, W), all pixels different
SHEET = torch.arange(3 * 5 * 4, dtype=torch.uint8).view(3, 1, 5, 4) * 4


@pytest.fixture(scope="module")
def colour_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 9, 3), dtype=np.uint8)
    return train(
        data=str(write_idx(tmp_path_factory.mktemp("data") / "colour", pixels)),
        steps=2,
        snapshots=2,
    )


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3), (64, 64, 3)])
def test_images_of_common_sizes_train_and_sample(
    shape: tuple[int, ...], train: Callable[..., Path], tmp_path: Path
) -> None:
    """With the default network, from end to end."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    usual = NETWORKS.defaults("unet")
    run = train(data=str(write_idx(tmp_path / "data", pixels)), steps=2, snapshots=2, **usual)
    images = undiffuse.sample(run, n=2)
    assert images.shape == (2, *shape)
    assert images.std() > 10


Seen = list[tuple[torch.Tensor, torch.Tensor | None]]


def watched(run: Path, **options: Any) -> tuple[Request, Seen]:
    """(a request, a list to which each of its network calls will add what the network sees).

    It sees the log-SNR and the conditions."""
    request, seen = undiffuse.load(run).request(**options), Seen()
    network = request.denoiser.network

    def note(
        x: torch.Tensor, log_snr: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        seen.append((log_snr, condition))
        return network(x, log_snr, condition)

    return replace(request, denoiser=replace(request.denoiser, network=note)), seen


# The same seed, the same image


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_batch_size_changes_no_image(labelled_run: Path, sampler: str) -> None:
    """Trap 15. Within 1 of 255, which is what fp32 can promise."""
    together, *others = (
        undiffuse.sample(labelled_run, n=7, sampler=sampler, batch_size=size, guidance=1.5).astype(
            int
        )
        for size in (64, 3, 1)
    )
    assert all(np.abs(together - other).max() <= 1 for other in others)
    assert together.std() > 3  # `posterior-mean` collapses, but not to nothing


def test_an_image_does_not_depend_on_how_many_are_sampled(run: Path) -> None:
    many, few = undiffuse.sample(run, n=9).astype(int), undiffuse.sample(run, n=4).astype(int)
    assert np.abs(many[:4] - few).max() <= 1


def test_another_seed_is_another_image(run: Path) -> None:
    one, again, other = (undiffuse.sample(run, n=3, seed=seed) for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).mean() > 0.5
    assert (one[0] != one[1]).mean() > 0.5


def test_what_is_not_asked_for_is_as_the_run_says(train: Callable[..., Path]) -> None:
    choice = {"sampler": "ddim:eta=0.5", "grid": "log-snr"}
    run = train(steps=2, snapshots=2, sample_calls=4, **choice)
    assert (undiffuse.sample(run, n=2) == undiffuse.sample(run, n=2, steps=4, **choice)).all()
    assert (undiffuse.sample(run, n=2) != undiffuse.sample(run, n=2, sampler="euler")).any()


@pytest.mark.parametrize(
    ("calls", "sampler", "guidance", "steps"),
    [
        (7, "ddpm", 1.0, 7),
        (7, "ddpm", 2.0, 3),
        (7, "heun", 1.0, 4),
        (7, "heun", 2.0, 2),
        (1, "heun", 2.0, 1),
    ],
)
def test_default_steps_keep_within_the_calls(
    train: Callable[..., Path], calls: int, sampler: str, guidance: float, steps: int
) -> None:
    """Every call counts, guidance's too; one step is the least."""
    run = train(
        steps=1,
        snapshots=2,
        sample_calls=calls,
        sampler=sampler,
        guidance=guidance,
        guidance_interval=EVERYWHERE,
        conditional=True,
    )
    request, seen = watched(run, n=1)
    list(request.batches())
    assert request.steps == steps
    assert len(seen) == request.calls <= max(calls, 2)


MORE_CALLS = {
    "heun": lambda steps: steps - 1,
    "heun-churn": lambda steps: steps - 1,
    "pndm": lambda steps: int(steps > 2),
    "restart": lambda steps: steps - 1 + 6 * (steps > 3),  # of these, only 5 passes t = 0.3
}
"""Network calls beyond one a step."""


@pytest.mark.parametrize("sampler", [*SAMPLERS, "ddim:eta=1"])
def test_every_sampler_takes_the_steps_and_calls_it_says(run: Path, sampler: str) -> None:
    """Trap 2: exactly K steps, one call each, Heun 2K - 1; the network itself is the witness."""
    for steps in (1, 2, 5):
        request, seen = watched(run, n=3, sampler=sampler, steps=steps, batch_size=3)
        (batch,) = request.batches()
        assert len(seen) == request.calls == steps + MORE_CALLS.get(sampler, lambda _: 0)(steps)
        if sampler not in ("heun-churn", "restart"):  # these go back to more noise
            # At each noise level but the last.
            assert len({log_snr[0].item() for log_snr, _ in seen}) == steps
        assert batch.dtype == torch.uint8
        assert batch.shape == (3, 1, 8, 8)


def test_bf16_samples_nearly_the_same(run: Path) -> None:
    exact, quick = (
        undiffuse.sample(run, n=8, precision=precision).astype(int)
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - quick).mean() < 5


def test_load_gives_the_averaged_model_ready_to_use(labelled_run: Path) -> None:
    from safetensors.torch import load_file

    model = undiffuse.load(labelled_run)
    network = model.network
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    averaged, state = (
        load_file(labelled_run / "model.safetensors"),
        load_file(labelled_run / "checkpoint.safetensors"),
    )
    assert all(torch.equal(value, averaged[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, state[f"ema/{name}"]) for name, value in averaged.items())
    assert not torch.equal(averaged["out.weight"], state["weights/out.weight"])
    assert (model.description.shape, model.classes) == ((1, 8, 8), tuple(map(str, range(10))))
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 1.0])
    denoised, denoiser = model.denoiser(x_t, t, condition=torch.tensor([0, 10])), model.denoiser
    assert denoised.shape == x_t.shape
    unconditional = denoiser(x_t[1:], t[1:], condition=torch.tensor([10]))
    assert torch.equal(denoiser(x_t[1:], t[1:]), unconditional)
    assert torch.allclose(denoised[1:], denoiser(x_t[1:], t[1:]), atol=1e-5)


# Classes and guidance


def shown(run: Path, **options: Any) -> list[list[int]]:
    """The conditions that the network is shown, call by call, in one step of one batch."""
    request, seen = watched(run, steps=1, **options)
    list(request.batches())
    return [condition.tolist() for _, condition in seen if condition is not None]


def test_the_network_is_shown_the_class_asked_for(labelled_run: Path) -> None:
    assert shown(labelled_run, n=3, classes=(7,)) == [[7, 7, 7]]
    assert shown(labelled_run, n=5, classes=(7, 2), batch_size=2) == [[7, 2], [7, 2], [7]]
    assert shown(labelled_run, n=2, classes=np.array([7, 2])) == [[7, 2]]
    assert shown(labelled_run, n=2, classes=torch.tensor([7, 2])) == [[7, 2]]
    assert shown(labelled_run, n=2, classes=[torch.tensor(7), np.int64(2)]) == [[7, 2]]
    assert not undiffuse.load(labelled_run).request(classes=np.array([7, 2])).note["usual"]
    assert shown(labelled_run, n=12) == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]]


def test_one_class_needs_no_list(labelled_run: Path) -> None:
    for alone in (7, "7", np.int64(7), np.array(7), torch.tensor(7)):
        assert shown(labelled_run, n=2, classes=alone) == [[7, 7]], repr(alone)


def test_guidance_asks_a_second_time_without_condition(labelled_run: Path) -> None:
    everywhere = {"guidance": 1.5, "guidance_interval": EVERYWHERE}
    assert shown(labelled_run, n=2, classes=(7,), **everywhere) == [[7, 7], [10, 10]]
    assert shown(labelled_run, n=2, classes=(7,), guidance=1.0) == [[7, 7]]


def test_a_class_changes_the_image(labelled_run: Path) -> None:
    plain, other = (
        undiffuse.sample(labelled_run, n=2, classes=[0]),
        undiffuse.sample(labelled_run, n=2, classes=[9]),
    )
    assert (plain != other).any()


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"classes": [7]}, "trained without classes,.*train one with conditional=True"),
        ({"classes": []}, "trained without classes,.*train one with conditional=True"),
        ({"guidance": 1.5}, "trained without classes or clusters.*conditional=True"),
        ({"guidance": 0.0}, "trained without classes or clusters.*conditional=True"),
    ],
)
def test_a_run_without_classes_says_so(run: Path, request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        undiffuse.sample(run, **request_)
    assert undiffuse.sample(run, n=1, guidance=1.0).shape == (1, 8, 8)  # 1 is no guidance


def test_a_run_that_was_never_without_condition_says_so(train: Callable[..., Path]) -> None:
    run = train(conditional=True, condition_dropout=0.0, steps=1, snapshots=2)
    with pytest.raises(
        UserError, match=r"no unconditional prediction; train one with condition_dropout=0\.1"
    ):
        undiffuse.sample(run, n=1, guidance=1.5)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"classes": [10]}, "no class 10; the classes are 0, 1, 2, 3"),
        ({"classes": [3, -1]}, "no class -1"),
        ({"classes": [1.5]}, "no class 1.5"),
        ({"classes": 10}, "no class 10"),
        ({"classes": "10"}, "no class 10"),
        ({"classes": {1, 2}}, "no class {1, 2}"),
        ({"classes": [(1, 2), (3, 4)]}, "classes must be a list, not a table of 2 x 2"),
        ({"classes": [(1, 2), 3]}, r"no class \(1, 2\)"),
        ({"classes": []}, "classes is an empty list; name at least one class"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 10**13}, "n must be at most 10,000,000"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10**9}, "at most 100,000, not 1000000000"),
        ({"seed": "one"}, "seed must be a whole number, not 'one'"),
        ({"seed": -1}, "seed must be a number from 0 to 2\\^63 - 1, not -1"),
        ({"seed": 2**63}, "seed must be a number from 0 to 2\\^63 - 1"),
        ({"label": 7}, "no option 'label'; there are: sampler, steps"),
        ({"sampler": "nonsense"}, "no sampler called 'nonsense'; there are: posterior-mean, ddpm"),
        ({"grid": "nonsense"}, "no time grid called 'nonsense'; there are: uniform"),
        ({"sampler": "ddim:eta=2"}, "eta must be between 0 and 1"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance_interval": (3, -3)}, "two finite log-SNRs, the lower first, not 3 and -3"),
        ({"guidance_interval": (-math.inf, 3)}, "two finite log-SNRs"),
        ({"guidance_interval": 3}, "guidance_interval must be two numbers, not 3"),
        ({"guidance_interval": ("a", 3)}, "guidance_interval must be a number, not 'a'"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_an_impossible_request_is_one_sentence(
    labelled_run: Path, request_: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        undiffuse.sample(labelled_run, **request_)
    assert "\n" not in str(caught.value)


# Where images go


def saved(
    to: str,
    pictures: torch.Tensor,
    classes: torch.Tensor | None = None,
    names: tuple[str, ...] = (),
) -> Path:
    destination = destinations.destination(to)
    destinations.save_images(destination, pictures, classes, names)
    return destination.path


@pytest.mark.parametrize("channels", [1, 3])
def test_an_archive_holds_images_and_labels(tmp_path: Path, channels: int) -> None:
    pictures, labels = SHEET.expand(3, channels, 5, 4), torch.tensor([2, 0, 1])
    with np.load(saved(f"{tmp_path}/a.npz", pictures, labels, ("a", "b", "c"))) as archive:
        assert sorted(archive) == ["classes", "images", "labels"]
        assert archive["classes"].tolist() == ["a", "b", "c"]
        assert archive["images"].dtype == np.uint8
        assert archive["images"].shape == ((3, 5, 4) if channels == 1 else (3, 5, 4, 3))
        assert (archive["images"].reshape(3, 5, 4, channels)[..., 0] == SHEET[:, 0].numpy()).all()
        assert archive["labels"].tolist() == [2, 0, 1]
    with np.load(saved(f"{tmp_path}/b.npz", pictures)) as archive:
        assert sorted(archive) == ["images"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_holds_one_png_an_image(tmp_path: Path, channels: int) -> None:
    folder = saved(
        f"{tmp_path}/new/", SHEET.expand(3, channels, 5, 4), torch.tensor([1, 0, 1]), ("a", "b/..")
    )
    names = ["00000_b_...png", "00001_a.png", "00002_b_...png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name, expected in zip(names, SHEET[:, 0].numpy(), strict=True):
        with Image.open(folder / name) as image:
            assert image.mode == ("L" if channels == 1 else "RGB")
            assert (np.asarray(image).reshape(5, 4, channels) == expected[..., None]).all()


def test_a_folder_that_was_interrupted_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the same command can be given again."""
    pictures, made = SHEET.expand(3, 1, 5, 4), list[int]()

    def interrupted(image: torch.Tensor) -> Image.Image:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return picture(image)

    with monkeypatch.context() as patch:
        patch.setattr(destinations, "as_picture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saved(f"{tmp_path}/new/", pictures)
    assert list((tmp_path / "new").iterdir()) == []
    assert len(list(saved(f"{tmp_path}/new/", pictures).iterdir())) == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_the_images_row_by_row(tmp_path: Path, channels: int) -> None:
    with Image.open(saved(f"{tmp_path}/grid.png", SHEET.expand(3, channels, 5, 4))) as sheet:
        shown = [
            tile.convert("L").resize((4, 5), Image.Resampling.NEAREST)
            for tile in tiles(sheet, 5, 4)
        ]
    assert len(shown) == 4  # two rows of two
    assert (np.stack([np.asarray(tile) for tile in shown[:3]]) == SHEET[:, 0].numpy()).all()
    assert not np.asarray(shown[3]).any()


@pytest.mark.parametrize("out", ["images.jpg", "images", "a.npy"])
def test_another_ending_is_refused(tmp_path: Path, out: str) -> None:
    with pytest.raises(UserError, match=r"FILE\.png.*FILE\.npz.*FOLDER/"):
        destinations.destination(str(tmp_path / out))


def test_a_file_in_no_folder_is_refused_before_sampling(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        destinations.destination(str(tmp_path / "nowhere" / "a.png"))
    grid = destinations.destination(str(tmp_path / "a.png"))
    with pytest.raises(UserError, match="no folder"):
        destinations.check_trajectory(tmp_path / "nowhere" / "a.gif", grid)
    with pytest.raises(UserError, match=r"FILE\.gif.*FILE\.png"):
        destinations.check_trajectory(tmp_path / "a.mp4", grid)


def test_colour_images_have_their_channels_last(colour_run: Path) -> None:
    images = undiffuse.sample(colour_run, n=2)
    assert images.shape == (2, 6, 9, 3)
    assert images.dtype == np.uint8


# The way from noise


@pytest.mark.parametrize("fixture", ["run", "colour_run"])
def test_a_trajectory_goes_from_noise_to_the_image(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str
) -> None:
    run = request.getfixturevalue(fixture)
    stages = undiffuse.load(run).request(2, steps=4).stages(10)
    assert len(stages) == 5
    assert (as_array(stages[-1]) == undiffuse.sample(run, n=2, steps=4)).all()
    assert stages[0].float().std() > 70  # clipped noise: 0 and 255 far apart

    destinations.save_trajectory(tmp_path / "way.gif", stages)
    with Image.open(tmp_path / "way.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 5
        gif.seek(4)
        last = np.asarray(gif.convert("RGB")).astype(int)
    expected = np.asarray(image_grid(stages[-1], columns=2).convert("RGB")).astype(int)
    assert np.abs(last - expected).mean() < 20  # a palette of 256 colours

    destinations.save_trajectory(tmp_path / "way.png", stages)
    height, width = stages[0].shape[-2:]
    with Image.open(tmp_path / "way.png") as strip:
        shown = [np.asarray(t.resize((width, height), 0)) for t in tiles(strip, height, width)]
    by_image = torch.stack(stages, dim=1).flatten(0, 1)  # a row an image
    assert (np.stack(shown) == as_array(by_image)).all()


def test_a_long_trajectory_is_shown_in_twelve_pictures(tmp_path: Path) -> None:
    stages = [torch.full((1, 1, 4, 4), k, dtype=torch.uint8) for k in range(34)]
    destinations.save_trajectory(tmp_path / "way.png", stages)
    with Image.open(tmp_path / "way.png") as strip:
        levels = [np.asarray(tile).flat[0] for tile in tiles(strip, 4, 4)]
    assert levels == list(range(0, 34, 3))


def test_a_grid_has_a_column_a_class_and_is_about_square_without() -> None:
    assert columns_for(100, classes=10) == 10
    assert columns_for(40, classes=0) == 7
    assert columns_for(16, classes=1) == 4  # a single class: no column sixteen images long
    assert columns_for(5, classes=10) == 3
    assert columns_for(40, classes=2) == 10  # no columns of twenty images
    assert columns_for(40, classes=4) == 8
    assert columns_for(40, classes=15) == 15
    assert columns_for(5, classes=2) == 4


def test_a_saved_grid_has_a_row_a_class(tmp_path: Path) -> None:
    """Images numbered by their order, of classes that cycle: 0, 1, 2, 0, 1, 2, 0.

    What is left of the last column is black."""
    numbered = torch.arange(1, 8, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    to = destinations.Destination(tmp_path / "x.png", "png")
    destinations.save_images(to, numbered, torch.arange(7) % 3, ("a", "b", "c"))
    with Image.open(to.path) as sheet:
        found = [int(np.asarray(tile).flat[0]) for tile in tiles(sheet, 4, 4)]
    assert found == [1, 4, 7, 2, 5, 0, 3, 6, 0]
    for labels in (
        [0] * 7,
        [0, 0, 1, 0, 1, 0, 1],
    ):  # one class, and classes that do not take turns: about a square
        destinations.save_images(to, numbered, torch.tensor(labels), ("a", "b", "c"))
        with Image.open(to.path) as sheet:
            assert [int(np.asarray(tile).flat[0]) for tile in tiles(sheet, 4, 4)] == [
                *range(1, 8),
                0,
                0,
            ]
