"""A claim holds, fails or stays open as the tables say."""

import math

import pandas as pd
import pytest

from benchmark.config import config
from benchmark.errors import ConfigError
from leaderboards.board import Board
from leaderboards.cells import DOUBT
from leaderboards.claims import Claim, judge

SAID = {"claim": "c", "defense": "a", "statement": "s", "source": "p"}


def cell(
    defense: str, number: str, value: float, low: float, high: float, concept: str = "cat", **more: object
) -> dict:
    arm = {"attack": "none", "budget": 0, "seed": 0, "defense_seed": 0, "status": "ok"} | more
    return arm | {"defense": defense, "concept": concept, "number": number} | numbers(value, low, high)


def numbers(value: float, low: float, high: float) -> dict:
    return {"value": value, "ci_low": low, "ci_high": high, "fixed_low": low, "fixed_high": high}


def board(
    cells: list[dict] | None = None, comparisons: list[dict] | None = None, curves: list[dict] | None = None
) -> Board:
    empty = pd.DataFrame()
    columns = [
        "defense",
        "concept",
        "number",
        "attack",
        "budget",
        "seed",
        "defense_seed",
        "value",
        "ci_low",
        "ci_high",
        "status",
    ]
    columns += ["flag"]
    pairs = ["defense_a", "defense_b", "number", "attack", "budget", "value", "fixed_low", "fixed_high", "p_fixed_holm"]
    points = ["defense", "attack", "concept", "budget", "presence", "fixed_low", "fixed_high"]
    return Board(
        cells=pd.DataFrame(cells or [], columns=columns),
        leaderboard=empty,
        matrix=empty,
        curves=pd.DataFrame(curves or [], columns=points),
        comparisons=pd.DataFrame(comparisons or [], columns=pairs),
        pareto=empty,
        variance=empty,
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "holds"),
    [(0.1, 0.0, 0.15, "yes"), (0.1, 0.0, 0.5, "undecided"), (0.3, 0.1, 0.5, "undecided"), (0.5, 0.4, 0.6, "no")],
)
def test_a_bound_holds_for_each_concept_on_its_own(value: float, low: float, high: float, holds: str) -> None:
    claim = Claim(**SAID, check="bound", number="presence_before", at_most=0.2)
    cells = [cell("a", "presence_before", value, low, high), cell("a", "presence_before", 0.0, 0.0, 0.1, "dog")]

    table = judge(board(cells), [claim])

    assert table["holds"].tolist() == [holds, "yes"]


def test_a_bound_from_below_is_the_other_way_round() -> None:
    claim = Claim(**SAID, check="bound", number="black_concept", at_least=0.95)
    rows = [cell("a", "black_concept", v, v - 0.01, v + 0.01, name) for v, name in ((0.99, "x"), (0.5, "y"))]

    assert judge(board(rows), [claim])["holds"].tolist() == ["yes", "no"]


@pytest.mark.parametrize("broken", ["a", "b"])
def test_collapsed_images_decide_nothing(broken: str) -> None:
    """The concept is absent from images that fell apart, on either side of a difference."""
    claim = Claim(**SAID, check="bound", against="b", number="presence_after", attack="lora", at_most=0.0)
    arm = {"attack": "lora", "budget": 9}
    rows = [
        cell(d, "presence_after", 0.0, 0.0, 0.1, **arm, status="collapsed" if d == broken else "ok") for d in ("a", "b")
    ]

    (row,) = judge(board(rows), [claim]).to_dict("records")

    assert row["holds"] == "undecided"
    assert row["measured"].endswith("(collapsed)")


@pytest.mark.parametrize("doubted", ["a", "b"])
def test_images_in_doubt_decide_nothing(doubted: str) -> None:
    arm = {"attack": "lora", "budget": 9}
    rows = [cell(d, "clip_score", 40.0, 20.0, 50.0, **arm, status="ok") for d in ("a", "b")]
    rows[doubted == "b"]["flag"] = DOUBT
    rows += [cell(d, "presence_after", 0.0, 0.0, 0.1, **arm, status="ok") for d in ("a", "b")]
    pair = {"defense_a": "a", "defense_b": "b", "number": "presence"} | arm | numbers(-0.9, -1.0, -0.8)
    bounded = Claim(**SAID, check="bound", against="b", number="presence_after", attack="lora", at_most=0.0)
    claims = [bounded, *(Claim(**SAID, check=check, against="b", attack="lora") for check in ("gap", "ratio"))]
    points = [
        {"concept": "all", "presence": 0.1, "fixed_low": 0.0, "fixed_high": 0.1, "defense": d} | arm for d in ("a", "b")
    ]

    table = judge(board(rows, [pair | {"p_fixed_holm": 0.001}], points), claims)

    assert table["holds"].tolist() == ["undecided"] * 3
    assert table["measured"].str.endswith(f"({DOUBT})").all()


def test_a_gap_without_cells_says_what_became_of_them() -> None:
    claim = Claim(**SAID, check="gap", against="b", attack="lora")
    rows = [cell("a", "presence_after", 0.0, 0.0, 0.1, attack="lora", budget=9, status="collapsed")]

    (row,) = judge(board(rows), [claim]).to_dict("records")
    (nothing,) = judge(board([]), [claim]).to_dict("records")

    assert row["measured"] == "no cells to compare: a collapsed at lora@9"
    assert nothing["measured"] == "not measured in this run"


def test_a_difference_has_the_conservative_interval() -> None:
    claim = Claim(**SAID, check="bound", number="retained_accuracy", against="none", at_least=-0.1)
    rows = [cell("a", "retained_accuracy", 0.9, 0.85, 0.95), cell("none", "retained_accuracy", 0.95, 0.9, 1.0)]

    (row,) = judge(board(rows), [claim]).to_dict("records")

    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((-0.05, -0.15, 0.05))
    assert row["holds"] == "undecided"  # the point keeps to the limit, a third of the interval does not


@pytest.mark.parametrize("swapped", [False, True])
def test_a_gap_reads_the_paired_difference_whichever_way_it_is_listed(swapped: bool) -> None:
    claim = Claim(**SAID, check="gap", against="b", attack="lora")
    pair = {"defense_a": "b", "defense_b": "a"} if swapped else {"defense_a": "a", "defense_b": "b"}
    sign = -1 if swapped else 1
    rows = [
        pair
        | {"number": "presence", "attack": "lora", "budget": b}
        | numbers(sign * v, sign * v, sign * v)
        | {"p_fixed_holm": p}
        for b, v, p in ((0, -0.9, 0.0), (10, -0.5, 0.001), (25, 0.4, 0.001), (50, -0.1, 0.6))
    ]

    table = judge(board(comparisons=rows), [claim])

    assert table["holds"].tolist() == ["yes", "no", "undecided"]
    assert table["value"].tolist() == pytest.approx([-0.5, 0.4, -0.1])


@pytest.mark.parametrize(("budget", "holds"), [(0, ["undecided"] * 4), (25, ["yes"])])
def test_a_gap_is_corrected_for_the_budgets_that_it_is_asked_at(budget: int, holds: list[str]) -> None:
    """Of four looks at nothing, one in five has a p below 0.05."""
    claim = Claim(**SAID, check="gap", against="b", attack="lora", budget=budget)
    rows = [
        {"defense_a": "a", "defense_b": "b", "number": "presence", "attack": "lora", "budget": b, "p_fixed_holm": p}
        | numbers(-0.2, -0.3, -0.1)
        for b, p in ((10, 0.5), (25, 0.02), (50, 0.6), (100, 0.7))
    ]

    assert judge(board(comparisons=rows), [claim])["holds"].tolist() == holds


def test_a_ratio_has_the_conservative_interval() -> None:
    claim = Claim(**SAID, check="ratio", against="b", attack="uda", at_most=0.5)
    points = [
        {
            "defense": d,
            "attack": "uda",
            "concept": "all",
            "budget": 9,
            "presence": v,
            "fixed_low": v - 0.1,
            "fixed_high": v + 0.1,
        }
        for d, v in (("a", 0.2), ("b", 0.8))
    ]

    (row,) = judge(board(curves=points), [claim]).to_dict("records")

    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((0.25, 0.1 / 0.9, 0.3 / 0.7))
    assert row["holds"] == "yes"


def test_what_a_run_did_not_measure_is_undecided() -> None:
    claims = [
        Claim(**SAID, check="bound", number="presence_before", at_most=0.2),
        Claim(**SAID, check="gap", against="b", attack="lora"),
        Claim(**SAID, check="ratio", against="b", attack="lora", at_most=0.5),
    ]

    table = judge(board(), claims)

    assert table["holds"].tolist() == ["undecided"] * 3
    assert all(math.isnan(v) for v in table["value"])


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"check": "bound"}, "expected at_most or at_least"),
        ({"check": "gap", "against": "b", "at_most": 0.1}, "neither in a gap"),
        ({"check": "ratio", "at_most": 0.5}, "against: DEFENSE"),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused(claim: dict, said: str) -> None:
    values = {"name": "x", "model": "mini", "concepts": ["cat"], "defenses": ["none"], "attacks": ["none"]}

    with pytest.raises(ConfigError, match=said):
        config.parse(values | {"metrics": [{"use": "presence"}], "claims": [SAID | claim]})
