"""Names, texts and values as messages, tables and terminals may have them."""

import json

import pytest

from benchmark.errors import shown, unknown, visible
from benchmark.given.values import FAULTS, values_of
from benchmark.given.words import filled, label


@pytest.mark.parametrize("name", ["esd", "a+b", "lora>pez", "<script>", "猫 2", "é", "a" * 200])
def test_a_name_may_be_anything_that_can_be_read(name: str) -> None:
    assert label(name) == name


@pytest.mark.parametrize("name", ["", " ", "a ", "=1+1", "+1", "-2", "@SUM(1)", "a\x1b[2J", "a\nb", "a" * 201, None, 3])
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="expected a name of 1 to 200"):
        label(name)


@pytest.mark.parametrize("text", ["{n:>9}", "{n!r}", "{n.real}", "{n[0]}", "{}", "{0.a}", "{n:{m}}", "{", "{m}"])
def test_only_a_name_stands_between_braces(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|brac|encountered"):
        filled(text, {"n": "x"})

    assert filled("{n} {{n}}", {"n": "x"}) == "x {n}"


def test_a_message_quotes_two_hundred_letters() -> None:
    assert len(shown("x" * 10**7)) < 210
    assert len(unknown("defense", "x" * 10**6, ["esd"])) < 300
    assert shown(16**5000) == "<int that is too large to show>"
    assert shown("esd") == "'esd'"


def test_control_characters_are_shown_and_json_stays_json() -> None:
    assert visible("\x1b]0;title\x07\x9b2J\u202e") == "\\u001b]0;title\\u0007\\u009b2J\\u202e"
    assert visible("é 猫\u00a0\n\t") == "é 猫\u00a0\n\t"
    assert json.loads(visible('"\x9b"')) == "\x9b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' twice in one mapping; remove one of them, in line 3"),
        ("x: {a: 1, a: 2}", "the key 'a' twice"),
        ("a: &a [*a]", "names nothing before it"),
        ("a: *b", "names nothing before it"),
        ("a: 2024-13-45", "month"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: !!float x", "x"),
        ("a: !!int ''", ""),
        ("a: !!bool x", ""),
        ("a: !!python/object/apply:os.system [x]", "constructor"),
        ("a: [", ""),
    ],
)
def test_yaml_that_cannot_be_meant_is_a_fault(text: str, message: str) -> None:
    with pytest.raises(FAULTS) as caught:
        values_of(text)

    assert message in str(caught.value)


def test_aliases_and_merges_are_yaml() -> None:
    assert values_of("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
