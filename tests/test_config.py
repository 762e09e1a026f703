"""The configuration: presets that hold, reasons for everything, and one clear sentence for whatever does not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from undiffuse.base.errors import UserError
from undiffuse.diffusion.denoiser import PREDICTIONS
from undiffuse.diffusion.grids import GRIDS
from undiffuse.diffusion.samplers import SAMPLERS
from undiffuse.diffusion.schedule import SCHEDULES
from undiffuse.diffusion.times import TIMES
from undiffuse.diffusion.weightings import WEIGHTINGS
from undiffuse.nets import NETWORKS
from undiffuse.training.config import TOWARDS, Config, validated
from undiffuse.training.presets import PRESETS, differences, make_config, reasons

TABLES = {
    "net": NETWORKS,
    "schedule": SCHEDULES,
    "predict": PREDICTIONS,
    "weighting": WEIGHTINGS,
    "times": TIMES,
    "sampler": SAMPLERS,
    "grid": GRIDS,
}
FLOATS = [name for name, field in Config.model_fields.items() if "float" in str(field.annotation)]


def refused(**fields: Any) -> str:
    """The one sentence that refuses these fields."""
    with pytest.raises(UserError) as caught:
        make_config(**fields)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_json(preset: str) -> None:
    config = make_config(preset)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == {
        k: v for k, (v, _) in PRESETS[preset].items()
    }
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_the_handout_preset_is_the_handouts() -> None:
    config = make_config("handout")
    assert (config.chain, config.schedule, config.predict, config.weighting) == (
        1000,
        "linear",
        "x0",
        "uniform",
    )
    assert (config.net, config.times, config.stratified) == ("unet2d", "uniform", False)


def test_a_budget_replaces_that_of_the_preset() -> None:
    assert make_config("fast").minutes == 10
    assert make_config("fast", minutes=3).minutes == 3
    assert (make_config("handout", epochs=2).minutes, make_config("handout", epochs=2).epochs) == (
        None,
        2,
    )
    assert (make_config(steps=5).minutes, make_config(steps=5).steps) == (None, 5)


@pytest.mark.parametrize(
    "budgets",
    [
        {"minutes": 1, "steps": 5},
        {"epochs": 1, "steps": 5},
        {"minutes": 1, "epochs": 1},
        {"minutes": None},
    ],
)
def test_there_is_exactly_one_budget(budgets: dict[str, Any]) -> None:
    assert "one of --minutes, --epochs and --steps" in refused(**budgets)


@pytest.mark.parametrize("field", TABLES)
def test_an_unknown_name_is_answered_with_the_known_ones(field: str) -> None:
    sentence = refused(**{field: "nonsense"})
    assert "nonsense" in sentence
    assert ", ".join(TABLES[field]) in sentence


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    assert ", ".join(PRESETS) in refused(preset="nonsense")


def test_an_unknown_parameter_of_a_known_name_is_refused() -> None:
    assert "s=0.008" in refused(schedule="cosine:q=1")
    assert "finite" in refused(schedule="cosine:s=nan")


def test_a_slash_at_the_end_makes_a_folder_of_a_data_sets_name() -> None:
    assert make_config(data="mnist/").data == "mnist/"
    assert make_config(data="photos/").data == "photos"


def test_levels_must_agree() -> None:
    assert "--channels, --blocks and --attention" in refused(channels=(8,))


@pytest.mark.parametrize("field", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_that_cannot_be_are_refused_by_the_fields_name(field: str, value: float) -> None:
    sentence = refused(**{field: value})
    assert sentence.startswith(field)
    assert str(value) in sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            ("steps", 0),
            ("batch_size", 0),
            ("subset", 0),
            ("chain", 1),
            ("snapshots", 1),
            ("seed", -1),
            ("warmup", -1),
        ],
        *[
            ("ema", 0.3),
            ("dropout", 1.0),
            ("label_dropout", 1.0),
            ("decay", 1.1),
            ("beta_2", 1.0),
            ("steps", 2.5),
        ],
        *[
            ("precision", "fp8"),
            ("compile", "maybe"),
            ("channels", (8, 0)),
            ("learning_rate", 0.1),
            ("seed", 2**64),
        ],
    ],
)
def test_values_out_of_range_are_refused_by_the_fields_name(field: str, value: Any) -> None:
    assert refused(**{field: value}).startswith(field)


def test_every_hyperparameter_has_a_reason() -> None:
    """What a field is stands before the dash, why it is so after it; a user's own budget and seed need none."""
    for name, field in Config.model_fields.items():
        what, dash, why = (field.description or "").partition(" - ")
        assert what
        assert name in ("preset", "epochs", "steps", "seed") or (dash and why), (
            f"{name} has no reason"
        )
    assert all(why for preset in PRESETS.values() for _, why in preset.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_reasons_are_the_presets_or_the_defaults_or_the_users(preset: str) -> None:
    config = make_config(preset, seed=7, lr=0.5)
    found = reasons(config)
    assert list(found) == list(Config.model_fields)
    assert all(found.values())
    for name, (_, why) in PRESETS[preset].items():
        assert found[name] == why or name == "lr"
    assert found["lr"] == found["seed"] == "chosen for this run"
    assert found["weight_decay"] == "its usual value"


def test_a_value_that_differs_from_the_presets_is_the_users_even_where_it_is_the_default() -> None:
    usual = make_config().sample_calls
    assert PRESETS["likelihood"]["sample_calls"][0] != usual
    assert (
        reasons(make_config("likelihood", sample_calls=usual))["sample_calls"]
        == "chosen for this run"
    )


def test_the_usual_guidance_falls_as_the_run_goes_on() -> None:
    """Eight times as near to 1 after sixteen times as many images."""
    for told, towards in TOWARDS.items():
        config = make_config(batch_size=60)
        found = [config.drawing(step, told)["guidance"] for step in (0, 1, 1000, 16_000, 10**9)]
        assert found == [2, 2, round(1 + min(1, towards), 2), round(1 + towards / 8, 2), 1]
    assert make_config(guidance=1.5).drawing(7, "class") == {
        "sampler": "dpmpp-2m-sde",
        "grid": "uniform",
        "guidance": 1.5,
    }


def test_without_labels_there_is_nothing_to_guide_by() -> None:
    for fields in ({}, {"guidance": 1.5}):
        assert make_config(**fields).drawing(7, None)["guidance"] == 1
    assert make_config(label_dropout=0.0).drawing(7, "class")["guidance"] == 1


def test_differences_name_each_field_with_both_values() -> None:
    one, other = make_config(steps=5), make_config(steps=5, lr=0.5, schedule="flow")
    assert differences(one, one) == []
    assert differences(one, other) == [
        "schedule: cosine there, flow asked",
        "lr: 0.004 there, 0.5 asked",
    ]


def test_a_saved_configuration_with_impossible_values_is_a_users_error() -> None:
    with pytest.raises(UserError, match="lr"):
        validated({**make_config().model_dump(), "lr": -1})
