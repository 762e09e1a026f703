"""The configuration and the session's options: presets, reasons, and a sentence for a mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from undiffuse.base.errors import UserError
from undiffuse.diffusion.conditioning import Conditioning, Kind
from undiffuse.diffusion.sampling import Sampling
from undiffuse.nets import NETWORKS
from undiffuse.training import options
from undiffuse.training.config import FORMER, TOWARDS, Config, validated
from undiffuse.training.experiment import DataFacts, build_configured
from undiffuse.training.fields import TABLES
from undiffuse.training.options import SessionOptions, make_options
from undiffuse.training.presets import PRESETS, differences, make_config, reasons

FLOATS = [name for name, field in Config.model_fields.items() if "float" in str(field.annotation)]
CONDITIONINGS: dict[Kind, Conditioning] = {
    "class": Conditioning(("a", "b")),
    "sub-class cluster": Conditioning(("a", "b"), (5, 5, 5), (0, 0, 1)),
    "cluster": Conditioning((), (5, 5)),
}


def refused(make: Callable[..., Any] = make_config, **fields: Any) -> str:
    """The one sentence that refuses these fields."""
    with pytest.raises(UserError) as caught:
        make(**fields)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


def build(**fields: Any) -> None:
    """Build the network of a configuration, for images of 8 x 8 pixels."""
    facts = DataFacts("x", (1, 8, 8), (), 10, 10, "")
    build_configured(make_config(**fields), facts, Conditioning())


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
    assert "one of minutes=M, epochs=E and steps=S" in refused(**budgets)


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
    """A network says so of its own options, before anything is trained."""
    said = refused(build, channels=(8,))
    assert "channels, blocks and attention have one entry a level, so 1, 2 and 2 entries" in said


def test_options_of_the_network_are_part_of_its_spec() -> None:
    """By their own names or within the spec; those as by default are left out."""
    config = make_config(channels=(8, 16), attention=(True, False), heads=2, dropout=None)
    assert config.net == "unet:channels=8/16,attention=1/0"
    assert make_config(net="unet:heads=4,channels=64/128").net == "unet:heads=4"
    assert make_config(net="unet:heads=4", heads=8, dropout=0.1).net == "unet:heads=8,dropout=0.1"
    assert make_config("likelihood", heads=4).net == "categorical:heads=4"
    assert make_config("likelihood", net="unet", channels=[8, 16]).net == "unet:channels=8/16"
    assert NETWORKS.options(config.net) == {"channels": (8, 16), "attention": (True, False)}


def test_the_names_of_the_version_before_are_understood() -> None:
    former = make_config(groups=7, label_dropout=0.2, score_share=0.1)
    assert former == make_config(clusters=7, condition_dropout=0.2, quality_share=0.1)
    assert not FORMER.keys() & Config.model_fields.keys()
    assert set(FORMER.values()) <= Config.model_fields.keys()


def test_the_sessions_options_decide_no_result() -> None:
    """They are no hyperparameters, so another session may have others."""
    assert not SessionOptions.model_fields.keys() & Config.model_fields.keys()
    assert make_options(compile="off", checkpoint_every=5).precision == "auto"
    for name in SessionOptions.model_fields:
        assert name in refused(**{name: "auto"})
    for field in SessionOptions.model_fields.values():
        what, dash, why = (field.description or "").partition(" - ")
        assert what
        assert dash
        assert why


@pytest.mark.parametrize("field", FLOATS)
def test_numbers_that_cannot_be_are_refused_by_the_fields_name(field: str) -> None:
    for value in (math.nan, math.inf, -1.0):
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
            ("condition_dropout", 1.0),
            ("decay", 1.1),
            ("beta_2", 1.0),
            ("steps", 2.5),
        ],
        ("clusters", -1),
        ("quality_share", 0.6),
        ("seed", 2**64),
    ],
)
def test_values_out_of_range_are_refused_by_the_fields_name(field: str, value: Any) -> None:
    assert refused(**{field: value}).startswith(field)


def test_the_sessions_options_out_of_range_are_refused_by_name() -> None:
    wrong = {"precision": "fp8", "compile": "maybe", "checkpoint_every": 0}
    for name, value in wrong.items():
        said = refused(make_options, **{name: value})
        assert said.startswith(name)
        assert repr(value) in said
    assert refused(make_options, speed="high").startswith("speed")


@pytest.mark.parametrize(
    ("fields", "compiled"),
    [
        ({"minutes": 60}, False),
        ({"preset": "likelihood"}, True),
        ({"preset": "likelihood", "minutes": 5}, False),
    ],
)
def test_a_network_is_compiled_where_that_saves_time(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], compiled: bool
) -> None:
    """Unless it is asked for, and where there is a compiler; else it is said."""
    config = make_config(**fields)
    monkeypatch.setattr(options, "compiler", lambda: "c++")
    assert options.resolve(make_options(), config, None)[0].compiled == compiled
    for chosen in ("on", "off"):
        engine, _ = options.resolve(make_options(compile=chosen), config, None)
        assert engine.compiled == (chosen == "on")
    monkeypatch.setattr(options, "compiler", lambda: None)
    engine, notes = options.resolve(make_options(precision="fp32"), config, None)
    assert not engine.compiled
    assert any("no C++ compiler" in note for note in notes) == compiled


def test_the_networks_options_out_of_range_are_refused_by_name() -> None:
    assert "network 'unet': channels must be" in refused(build, channels=(8, 0))
    assert "dropout must be at least 0 and below 1, not 1.0" in refused(build, dropout=1.0)
    assert "no hyperparameter 'learning_rate'" in refused(learning_rate=0.1)
    assert "channels, blocks, attention, heads, dropout" in refused(learning_rate=0.1)


def test_every_hyperparameter_has_a_reason() -> None:
    """What a field is stands before the dash, why it is so after it.

    A user's own budget and seed need no reason, and the options of a network have theirs."""
    for name, field in Config.model_fields.items():
        what, dash, why = (field.description or "").partition(" - ")
        assert what
        assert name in ("preset", "epochs", "steps", "seed") or (dash and why), (
            f"{name} has no reason"
        )
    assert all(why for preset in PRESETS.values() for _, why in preset.values())
    for net in NETWORKS:
        for option in NETWORKS.defaults(net):
            what, dash, why = NETWORKS.function(net).reasons[option].partition(" - ")
            assert what, (net, option)
            assert dash, (net, option)
            assert why, (net, option)


@pytest.mark.parametrize("preset", PRESETS)
def test_reasons_are_the_presets_or_the_defaults_or_the_users(preset: str) -> None:
    config = make_config(preset, seed=7, lr=0.5)
    found = reasons(config)
    assert list(found) == list(Config.model_fields)
    assert all(found.values())
    for name, (_, why) in PRESETS[preset].items():
        assert found[name] == why or name == "lr"
    assert found["lr"] == found["seed"] == "chosen for this run"
    assert (
        found["weight_decay"]
        == "measured on a ten-minute recipe: held-out loss 0.0731 with this and with 0.1, where "
        "seeds differ by 0.0002"
    )


def test_a_value_that_differs_from_the_presets_is_the_users_even_where_it_is_the_default() -> None:
    usual = make_config().sample_calls
    assert PRESETS["likelihood"]["sample_calls"][0] != usual
    assert (
        reasons(make_config("likelihood", sample_calls=usual))["sample_calls"]
        == "chosen for this run"
    )


def test_the_usual_guidance_falls_as_the_run_goes_on() -> None:
    """Eight times as near to 1 after sixteen times as many images."""
    for kind, w in TOWARDS.items():
        config = make_config(batch_size=60, guidance_limit=1.5)
        conditioning = CONDITIONINGS[kind]
        assert conditioning.kind == kind
        steps = (0, 1, 1000, 16_000, 10**9)
        found = [config.sampling(step, conditioning).guidance for step in steps]
        assert found == [1.5, 1.5, round(min(1.5, 1 + w), 2), round(1 + w / 8, 2), 1]
    sampling = make_config(guidance=1.5).sampling(7, CONDITIONINGS["class"])
    assert sampling == Sampling(
        "dpmpp-2m-sde", calls=14, grid="uniform", guidance=1.5, guidance_interval=(-3, 15)
    )


def test_without_conditions_there_is_nothing_to_guide_by() -> None:
    for fields in ({}, {"guidance": 1.5}):
        assert make_config(**fields).sampling(7, Conditioning()).guidance == 1
    always = Conditioning(("a", "b"), unconditional=False)
    assert make_config(condition_dropout=0.0).sampling(7, always).guidance == 1


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
