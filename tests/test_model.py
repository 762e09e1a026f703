"""`Model`: built, described, saved, loaded and used without a run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import undiffuse
from undiffuse import Model, UserError
from undiffuse.base.tensors import load_tensors, save_tensors
from undiffuse.diffusion.conditioning import Conditioning
from undiffuse.diffusion.likelihood import variational_bound
from undiffuse.diffusion.sampling import Sampling
from undiffuse.model import Description
from undiffuse.nets import NETWORKS

CLASSES = Conditioning(("cat", "dog", "2"))
CLUSTERS = Conditioning(("cat", "dog"), (5, 3, 0, 4), (0, 0, 1, 1))
WITHOUT = Conditioning()
UNET = "unet:channels=8/16,blocks=1/1"
SMALL = {
    "unet": UNET,
    "categorical": "categorical:channels=8/16,blocks=1/1",
    "unet2d": "unet2d:channels=8/16,blocks=1/1,attention=0/0",
}


def described(conditioning: Conditioning, net: str = UNET, **others: Any) -> Description:
    sampling = Sampling("ddim", steps=3, guidance=1.5 if conditioning.guidable else 1.0)
    predict = "x0" if net.startswith("categorical") else "v"
    usual = Description(net, "cosine", predict, (1, 8, 8), conditioning, sampling, step=7)
    return replace(usual, **others)


def made(conditioning: Conditioning, net: str = UNET, **others: Any) -> Model:
    """A model whose weights are all random, the last layer's and the prototypes' too."""
    model = Model(described(conditioning, net, **others))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.network.state_dict().items():
            if value.is_floating_point() and "marginal" not in name:
                value += 0.2 * torch.randn(value.shape, generator=g)
    return model


def noisy(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# Files


@pytest.mark.parametrize("net", list(NETWORKS))
def test_a_saved_model_is_the_same_model(net: str, tmp_path: Path) -> None:
    """Its outputs, its samples, its bits and its description. No run folder is needed."""
    model = made(CLUSTERS, SMALL.get(net, net), chain=100)
    model.save(tmp_path / "model.safetensors")
    same = Model.load(tmp_path / "model.safetensors")
    assert same.description == model.description
    assert same.classes == ("cat", "dog")
    x_t = noisy(3)
    for options in ({}, {"classes": "dog"}, {"classes": [1, 0, "dog"], "seed": 3}):
        assert torch.equal(model(x_t, 0.7, **options), same(x_t, 0.7, **options))
    assert not torch.equal(model(x_t, 0.7, "cat"), model(x_t, 0.7, "dog"))
    images = model.sample(4)
    assert images.shape == (4, 8, 8)
    assert images.dtype == np.uint8
    assert (images == same.sample(4)).all()
    assert (model.bits(images) == same.bits(images)).all()


def test_a_description_is_plain_data(tmp_path: Path) -> None:
    """Which says all that is needed beside the weights, in the file too."""
    model = made(CLUSTERS, chain=100)
    found = json.loads(json.dumps(model.describe()))
    assert found["net"] == UNET
    assert found["shape"] == [1, 8, 8]
    assert found["conditioning"]["classes"] == ["cat", "dog"]
    assert found["conditioning"]["clusters"] == [5, 3, 0, 4]
    assert (found["sampling"]["sampler"], found["chain"], found["step"]) == ("ddim", 100, 7)
    model.save(tmp_path / "model.safetensors")
    _, metadata = load_tensors(tmp_path / "model.safetensors")
    assert json.loads(metadata["model"]) == found
    assert metadata["step"] == "7"


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = made(CLASSES)
    for name in ("one", "two"):
        model.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


def test_a_finished_runs_file_is_a_model_anywhere(labelled_run: Path, tmp_path: Path) -> None:
    """model.safetensors alone, elsewhere, under another name."""
    file = shutil.copy(labelled_run / "model.safetensors", tmp_path / "digits.st")
    model, of_run = Model.load(file), undiffuse.load(labelled_run)
    assert model.description == of_run.description
    assert model.description.step == 12
    assert (model.sample(3, classes=7) == of_run.sample(3, classes=7)).all()


def with_description(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """What writes the same weights with another description."""

    def write(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        content = json.loads(metadata["model"])
        change(content)
        save_tensors(path, tensors, {**metadata, "model": json.dumps(content)})

    return write


def changed(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def without_weight(path: Path) -> None:
    tensors, metadata = load_tensors(path)
    tensors.popitem()
    save_tensors(path, tensors, metadata)


def not_finite(path: Path) -> None:
    tensors, metadata = load_tensors(path)
    next(iter(tensors.values())).flatten()[0] = torch.nan
    save_tensors(path, tensors, metadata)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "not there": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "a text": lambda path: path.write_text("hello"),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit of the weights": lambda path: changed(path, -5),
    "a bit of the header": lambda path: changed(path, 300),
    "tensors without a description": lambda path: save_tensors(path, {"a": torch.ones(3)}, {}),
    "a weight less": without_weight,
    "a weight that is no number": not_finite,
    "other weights": with_description(lambda d: d.update(net="unet:channels=8/16,blocks=1/2")),
    "other classes": with_description(lambda d: d["conditioning"].update(classes=["cat"])),
    "an unknown network": with_description(lambda d: d.update(net="transformer")),
    "an unknown option": with_description(lambda d: d.update(net="unet:depth=4")),
    "an unknown schedule": with_description(lambda d: d.update(schedule="square")),
    "impossible steps": with_description(lambda d: d["sampling"].update(steps="many")),
    "an impossible prediction": with_description(lambda d: d.update(predict="eps")),
    "no prediction": with_description(lambda d: d.pop("predict")),
    "something else besides": with_description(lambda d: d.update(colour="red")),
    "an image of no size": with_description(lambda d: d.update(shape=[1, 0, 8])),
    "a huge network": with_description(lambda d: d.update(net="unet:channels=4096/4096")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "some model.safetensors"
    made(CLASSES).save(path)
    assert Model.load(path)
    DAMAGES[damage](path)
    with pytest.raises(UserError) as caught:
        Model.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    for machinery in ("Traceback", "pydantic", "validation error", "input_value"):
        assert machinery not in sentence


def test_a_model_that_cannot_be_is_refused_when_it_is_built() -> None:
    for others, said in (
        ({"predict": "eps"}, "divides by zero at t = 1"),
        ({"schedule": "square"}, "no schedule called 'square'"),
        ({"net": "unet:channels=8"}, "channels, blocks and attention"),
        ({"net": "categorical:channels=8/16,blocks=1/1"}, "predict must be 'x0'"),
    ):
        with pytest.raises(UserError, match=said):
            Model(replace(described(CLASSES), **others))


# The same as the functions of the package


def test_a_model_samples_what_the_function_does(labelled_run: Path) -> None:
    """To the bit."""
    model = undiffuse.load(labelled_run)
    for options in (
        {},
        {"classes": 7, "guidance": 1.5},
        {"classes": ["3", 1], "seed": 5, "sampler": "heun", "steps": 4, "batch_size": 2},
    ):
        assert (model.sample(5, **options) == undiffuse.sample(labelled_run, 5, **options)).all()
        assert (model.sample(n=5, **options) == model.sample(n=5, **options)).all()


def test_a_model_is_read_once(labelled_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is used."""
    read: list[Path] = []

    def counted(path: Path, *arguments: Any, **options: Any) -> Any:
        read.append(path)
        return load_tensors(path, *arguments, **options)

    monkeypatch.setattr("undiffuse.model.model.load_tensors", counted)
    monkeypatch.setattr("undiffuse.runs.folder.load_tensors", counted)
    model = undiffuse.load(labelled_run)
    assert read == [labelled_run / "model.safetensors"]
    first, again = model.sample(2), model.sample(2)
    model(noisy(2), 0.5, classes=3)
    model.bits(first, classes=3)
    assert (first == again).all()
    assert len(read) == 1
    undiffuse.sample(labelled_run, n=1)
    assert len(read) == 2


# Denoising


def test_a_class_by_its_name_and_by_its_number_is_the_same() -> None:
    """One for all images or one each. A name counts before a number as text."""
    model, x_t = made(CLASSES), noisy(2)
    of_dog = model(x_t, 0.8, classes="dog")
    for classes in (1, "1", [1, 1], ["dog", 1], np.array([1, 1]), torch.tensor([1, 1])):
        assert torch.equal(model(x_t, 0.8, classes=classes), of_dog), classes
    of_two = model(x_t, 0.8, classes=2)
    assert torch.equal(model(x_t, 0.8, classes="2"), of_two)
    assert not torch.equal(of_two, of_dog)
    each = model(x_t, 0.8, classes=["dog", "2"])
    torch.testing.assert_close(each, torch.stack([of_dog[0], of_two[1]]))


@pytest.mark.parametrize("conditioning", [CLASSES, CLUSTERS], ids=["classes", "clusters"])
def test_no_class_is_the_unconditional_prediction(conditioning: Conditioning) -> None:
    model, x_t = made(conditioning), noisy(3)
    t = torch.full((3,), 0.6, dtype=torch.float64)
    condition = torch.full((3,), conditioning.count)
    with torch.no_grad():
        expected = model.denoiser(x_t, t, condition=condition)
    assert torch.equal(model(x_t, 0.6), expected)
    assert not torch.equal(model(x_t, 0.6, classes=0), expected)


def test_a_model_without_conditions_denoises() -> None:
    model, x_t = made(WITHOUT), noisy(3)
    with torch.no_grad():
        expected = model.denoiser(x_t, torch.tensor([0.2, 0.5, 1.0]))
    assert torch.equal(model(x_t, torch.tensor([0.2, 0.5, 1.0])), expected)
    assert not expected.requires_grad
    with pytest.raises(UserError, match="trained without classes"):
        model(x_t, 0.5, classes=0)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("cow", "no class cow; the classes are 0 to 2: cat, dog, 2"),
        (3, "no class 3"),
        (-1, "no class -1"),
        (1.0, r"no class 1\.0"),
        (["dog", "cow", 1], "no class cow"),
        ([0, 1], "classes has 2 entries for 3 images; give one each"),
        ([], "classes is an empty list"),
        ([[0, 1, 2]], "classes must be a list, not a table of 1 x 3"),
    ],
)
def test_what_is_no_class_is_refused(classes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(CLASSES)(noisy(3), 0.5, classes=classes)


def test_images_keep_their_clusters_from_call_to_call() -> None:
    """They are a function of the class, the seed and the images' numbers, as in sampling."""
    model, x_t = made(CLUSTERS), noisy(1).expand(40, -1, -1, -1)
    first = model(x_t, 0.9, classes="cat")
    assert torch.equal(model(x_t, 0.9, classes="cat"), first)
    assert len(first.round(decimals=4).flatten(1).unique(dim=0)) == 2  # clusters of the class "cat"
    numbers = [7, 30, 2]
    alone = model(x_t[:3], 0.9, classes="cat", samples=numbers)
    torch.testing.assert_close(alone, first[numbers])
    assert not torch.equal(model(x_t, 0.9, classes="cat", seed=1), first)
    # The clusters that sampling takes.
    clusters = CLUSTERS.sample(torch.zeros(40, dtype=torch.long), range(40), 0)
    with torch.no_grad():
        expected = model.denoiser(
            x_t, torch.full((40,), 0.9, dtype=torch.float64), condition=clusters
        )
    assert torch.equal(first, expected)


def test_without_an_unconditional_prediction_there_is_none() -> None:
    model = made(replace(CLASSES, unconditional=False))
    said = "condition_dropout=0, so it has no unconditional prediction; train one with"
    with pytest.raises(UserError, match=said):
        model(noisy(2), 0.5)
    assert model(noisy(2), 0.5, classes=1).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match=said):
        model.sample(1, guidance=2.0)
    with pytest.raises(UserError, match=said):
        model.bits(np.zeros((2, 8, 8), np.uint8))


# Bits


IMAGES = torch.randint(0, 256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(2)).byte()


def test_bits_are_those_of_the_variational_bound() -> None:
    """Of the chain that the model was trained on, else of the usual one."""
    for chain in (None, 50):
        model = made(CLASSES, chain=chain)
        for classes, condition in ((None, None), (1, torch.ones(5, dtype=torch.long))):
            found = model.bits(IMAGES[:, 0].numpy(), classes, seed=3)
            bound = variational_bound(model.denoiser, IMAGES, condition, steps=chain, seed=3)
            assert found.shape == (5,)
            assert (found == bound.total.numpy()).all()
    assert (model.bits(IMAGES, "dog") == model.bits(IMAGES, [1] * 5)).all()
    assert (model.bits(IMAGES, "dog") != model.bits(IMAGES, "cat")).all()


def test_images_are_understood_in_every_usual_form() -> None:
    model = made(WITHOUT)
    expected = model.bits(IMAGES)
    for form in (IMAGES[:, 0], IMAGES.numpy(), IMAGES.movedim(1, -1).numpy()):
        assert (model.bits(form) == expected).all()
    with pytest.raises(UserError, match="images must be uint8, 0 to 255, not float32"):
        model.bits(IMAGES.float())
    with pytest.raises(UserError, match=r"images must be \(n, 8, 8\), not \(5, 8\)"):
        model.bits(IMAGES[:, 0, 0])


def test_bits_are_asked_without_classes_where_there_are_clusters() -> None:
    """A test image's cluster is not known, so the model is measured without conditions."""
    model = made(CLUSTERS)
    with pytest.raises(UserError, match=r"conditioned on clusters.*leave classes out"):
        model.bits(IMAGES, classes=0)
    bound = variational_bound(model.denoiser, IMAGES)
    assert (model.bits(IMAGES) == bound.total.numpy()).all()


def test_bits_take_one_class_for_each_image() -> None:
    with pytest.raises(UserError, match="classes has 2 entries for 5 images; give one each"):
        made(CLASSES).bits(IMAGES, classes=[0, 1])


# Noise


def test_noised_images_are_those_of_the_jump() -> None:
    """Of alpha and sigma at t, one time for all images or one each; the same noise each time."""
    model = made(WITHOUT)
    t = torch.tensor([0.1, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    found = model.noised(IMAGES, t)
    level = model.denoiser.noise_level(t)
    x_0 = IMAGES.float() / 127.5 - 1
    noise = (found - level.alpha.view(-1, 1, 1, 1) * x_0) / level.sigma.view(-1, 1, 1, 1)
    assert noise.mean().item() == pytest.approx(0, abs=0.15)
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(model.noised(IMAGES, 0.4)[1], found[1])
    assert not torch.equal(model.noised(IMAGES, t, seed=1), found)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, x: m(x[:, :, :4], 0.5), r"x_t must be \(B, 1, 8, 8\), not \(3, 1, 4, 8\)"),
        (lambda m, x: m(x[0], 0.5), r"x_t must be \(B, 1, 8, 8\), not \(1, 8, 8\)"),
        (lambda m, x: m(x[:0], 0.5), r"x_t must be \(B, 1, 8, 8\), not \(0, 1, 8, 8\)"),
        (lambda m, x: m(x.long(), 0.5), "x_t must be floats, not int64; `noised` makes them"),
        (lambda m, x: m("noise", 0.5), "x_t must be an array or a tensor of numbers"),
        (lambda m, x: m(x, 1.5), r"t must be in \(0, 1\], not 1\.5"),
        (lambda m, x: m(x, 0), r"t must be in \(0, 1\], not 0"),
        (lambda m, x: m(x, [0.5, float("nan"), 1]), r"t must be in \(0, 1\], not nan"),
        (lambda m, x: m(x, [0.5, 0.5]), r"t must be one time, or 3 of them, not \(2,\)"),
        (lambda m, x: m(x, 0.5, seed=-1), r"seed must be a number from 0"),
        (lambda m, x: m(x, None), "t must be an array or a tensor of numbers"),
        (lambda m, x: m.noised(x.byte(), 2), r"t must be in \[0, 1\], not 2"),
        (lambda m, x: m.noised(x.byte(), -1), r"t must be in \[0, 1\], not -1"),
        (lambda m, x: m.noised(x, 0.5), "images must be uint8, 0 to 255, not float32"),
        (lambda m, x: m.noised([], 0.5), "images must be uint8, 0 to 255, not float64"),
        (lambda m, x: m.noised(x.byte()[:0], 0.5), "there are no images"),
        (lambda m, x: m.bits(x.byte()[:0]), "there are no images"),
        (lambda m, x: m.bits(x.byte()[:, :, :4]), r"images must be \(n, 8, 8\), not"),
        (lambda m, x: m.bits([["a"]]), "images must be an array or a tensor of numbers"),
        (lambda m, x: m.bits(np.uint8(3)), r"images must be \(n, 8, 8\), not \(1,\)"),
        (lambda m, x: m.bits(x.byte(), seed=2**70), "seed must be a number"),
    ],
)
def test_arguments_that_cannot_be_are_refused(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(made(WITHOUT), torch.zeros(3, 1, 8, 8))


def test_arrays_of_every_kind_are_taken() -> None:
    model, x_t = made(WITHOUT), noisy(3)
    expected = model(x_t, 0.5)
    frozen = x_t.numpy().copy()
    frozen.flags.writeable = False
    for same in (frozen, x_t.numpy().astype(">f8"), x_t.double(), x_t.numpy().tolist()):
        assert torch.allclose(model(same, np.full(3, 0.5)), expected, atol=1e-6)
    turned = model(x_t.numpy()[::-1], torch.tensor([0.5]))
    assert torch.allclose(turned.flip(0), expected, atol=1e-6)
    images = (x_t.clamp(0, 1) * 255).byte()
    assert torch.equal(model.noised(images, 0), images / 127.5 - 1)
