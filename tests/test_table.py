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


@TABLE.named("salt")
def sodium_chloride(x: float) -> float:
    return x


def test_names() -> None:
    assert list(TABLE) == ["black-pepper", "salt"]
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


def test_defaults() -> None:
    assert TABLE.defaults("black-pepper") == {"heat": 1, "age": 2}
    assert TABLE.defaults("salt") == {}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sugar", "no spice called 'sugar'; there are: black-pepper, salt"),
        ("", "no spice called ''; there are: black-pepper, salt"),
        ("Salt", "no spice called 'Salt'"),
        ("sugar:heat=1", "no spice called 'sugar'"),
        (
            "black-pepper:cold=1",
            "'black-pepper' has no parameter 'cold' .*; it has: heat=1.0, age=2.0",
        ),
        ("black-pepper:x=1", "no parameter 'x'"),
        ("black-pepper:heat", "no parameter 'heat' .*in 'black-pepper:heat'"),
        ("salt:heat=1", "'salt' has no parameter 'heat' .*; it has: none"),
        *(
            (f"black-pepper:heat={v}", f"heat must be a finite number, not '{v}'")
            for v in ("hot", "", "nan", "inf", "-inf")
        ),
    ],
)
def test_an_error_says_what_is_wrong_with_a_spec(spec: str, said: str) -> None:
    for use in (TABLE.check, TABLE.__getitem__):
        with pytest.raises(UserError, match=said):
            use(spec)
