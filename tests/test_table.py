"""Tables: one string names a function and sets its parameters. Errors say what a table has."""

from __future__ import annotations

import pytest

from undiffuse.base.errors import UserError
from undiffuse.base.table import Table

TABLE = Table("spice")


@TABLE.add
def Black_Pepper(  # noqa: N802
    x: float, *, heat: float = 1.0, age: float = 2.0
) -> tuple[float, float, float]:
    return x, heat, age


@TABLE.add
def soup(
    *,
    spoons: int = 2,
    hot: bool = True,
    sizes: tuple[int, ...] = (8, 16),
    lids: tuple[bool, ...] = (False, True),
    salt: float = 0.5,
) -> tuple[object, ...]:
    return spoons, hot, sizes, lids, salt


@TABLE.named("salt")
def sodium_chloride(x: float) -> float:
    return x


def test_names() -> None:
    assert list(TABLE) == ["black-pepper", "soup", "salt"]
    assert "salt" in TABLE
    assert "Black_Pepper" not in TABLE
    with pytest.raises(ValueError, match="two spice functions are called salt"):
        TABLE.named("salt")(sodium_chloride)


@pytest.mark.parametrize(
    ("spec", "heat", "age"),
    [
        ("black-pepper", 1, 2),
        ("black-pepper:", 1, 2),
        ("black-pepper:age=5", 1, 5),
        ("black-pepper:heat=-1e-3,age=0", -0.001, 0),
        ("black-pepper:age=3,heat=4,", 4, 3),
    ],
)
def test_a_spec_sets_parameters(spec: str, heat: float, age: float) -> None:
    TABLE.check(spec)
    assert TABLE[spec](7) == (7, heat, age)


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        ("soup:spoons=3", {"spoons": 3}),
        ("soup:spoons=3.0", {"spoons": 3}),
        ("soup:hot=0", {"hot": False}),
        ("soup:hot=false", {"hot": False}),
        ("soup:hot=True", {"hot": True}),
        ("soup:sizes=8/16/32", {"sizes": (8, 16, 32)}),
        ("soup:sizes=4", {"sizes": (4,)}),
        ("soup:lids=1/0/True", {"lids": (True, False, True)}),
        ("soup:spoons=3,spoons=5", {"spoons": 5}),  # the last one counts
    ],
)
def test_a_parameter_is_of_the_kind_of_its_default(spec: str, changed: dict[str, object]) -> None:
    """Whole numbers, switches, and tuples of them with / between the entries."""
    assert TABLE.options(spec) == changed
    assert repr(TABLE.options(spec)) == repr(changed)  # True and 1 are equal, and not the same
    assert TABLE[spec]() == tuple({**TABLE.defaults("soup"), **changed}.values())


def test_defaults_and_options() -> None:
    """What a spec may set, and what it sets."""
    assert TABLE.defaults("black-pepper") == {"heat": 1, "age": 2}
    assert TABLE.defaults("salt") == {}
    assert TABLE.options("black-pepper") == {}
    assert TABLE.options("black-pepper:age=2") == {"age": 2}


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("salt", "salt"),
        ("soup:", "soup"),
        ("soup:spoons=2,hot=1,sizes=8/16,lids=0/1,salt=0.5", "soup"),
        ("soup:salt=1e-3,spoons=4.0", "soup:spoons=4,salt=0.001"),
        ("soup:lids=True/0,hot=False", "soup:hot=0,lids=1/0"),
        ("soup:sizes=8/16/32,sizes=64", "soup:sizes=64"),
    ],
)
def test_equal_specs_have_one_canonical_form(spec: str, canonical: str) -> None:
    """Without what is as by default, in the order of the function's parameters."""
    assert TABLE.canonical(spec) == canonical
    assert TABLE.canonical(canonical) == canonical
    if spec != "salt":
        assert TABLE[canonical]() == TABLE[spec]()


def test_a_function_can_be_added_for_a_while() -> None:
    def mint(x: float, *, leaves: int = 3) -> float:
        return x * leaves

    with TABLE.added(mint), TABLE.added(mint, "wild-mint"):
        assert list(TABLE)[-2:] == ["mint", "wild-mint"]
        assert TABLE["wild-mint:leaves=5"](2) == 10
        with pytest.raises(ValueError, match="two spice functions are called mint"):
            TABLE.add(mint)
    assert list(TABLE) == ["black-pepper", "soup", "salt"]
    with pytest.raises(RuntimeError), TABLE.added(mint):
        raise RuntimeError
    with pytest.raises(UserError, match="no spice called 'mint'"):
        TABLE["mint"]


def test_what_is_added_meanwhile_by_others_stays() -> None:
    """A network's file is imported when it is first asked for, and is never imported again."""
    table = Table("spice")
    with table.added(sodium_chloride, "salt"):
        table.named("pepper")(Black_Pepper)
    assert list(table) == ["pepper"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sugar", "no spice called 'sugar'; there are: black-pepper, soup, salt"),
        ("", "no spice called ''; there are: black-pepper, soup, salt"),
        ("Salt", "no spice called 'Salt'"),
        ("sugar:heat=1", "no spice called 'sugar'"),
        (
            "black-pepper:cold=1",
            "'black-pepper' has no parameter 'cold' .*; it has: heat=1.0, age=2.0",
        ),
        ("black-pepper:x=1", "no parameter 'x'"),
        ("black-pepper:heat", "no parameter 'heat' .*in 'black-pepper:heat'"),
        ("salt:heat=1", "'salt' has no parameter 'heat' .*; it has: none"),
        ("soup:spoons=2.5", "spoons must be a whole number, not '2.5'"),
        ("soup:spoons=many", "spoons must be a finite number, not 'many'"),
        ("soup:hot=2", "spice 'soup:hot=2': hot must be 0 or 1, not '2'"),
        ("soup:hot=", "hot must be 0 or 1, not ''"),
        ("soup:sizes=", "sizes must be numbers with / between them, not ''"),
        ("soup:sizes=8/", "sizes must be a finite number, not '8/'"),
        ("soup:sizes=8/1.5", "sizes must be a whole number, not '8/1.5'"),
        ("soup:lids=0/maybe", "lids must be 0 or 1, not '0/maybe'"),
        ("soup:depth=1", "it has: spoons=2, hot=1, sizes=8/16, lids=0/1, salt=0.5"),
        *(
            (f"black-pepper:heat={v}", f"heat must be a finite number, not '{v}'")
            for v in ("hot", "", "nan", "inf", "-inf")
        ),
    ],
)
def test_an_error_says_what_is_wrong_with_a_spec(spec: str, said: str) -> None:
    uses = (TABLE.check, TABLE.__getitem__, TABLE.options, TABLE.canonical)
    for use in uses:
        with pytest.raises(UserError, match=said):
            use(spec)
