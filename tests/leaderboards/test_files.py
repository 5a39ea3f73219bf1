"""Tables are read by spreadsheets and web pages: what is text in them stays text."""

from pathlib import Path

import pandas as pd
import pytest

from leaderboards.files import write_table

FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "@SUM(1)", "-2+3", "\t=1", "\r=1"]


def test_no_text_is_a_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"reason": FORMULAS, "value": [-1.5] * len(FORMULAS)})
    write_table(frame, tmp_path / "a.csv")

    found = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)

    assert found["reason"].tolist() == [f"'{text}".replace("\r", " ") for text in FORMULAS]
    assert found["value"].tolist() == [-1.5] * len(FORMULAS)


def test_numbers_and_missing_values_stay_as_they_are(tmp_path: Path) -> None:
    frame = pd.DataFrame({"value": ["-1.5", "+2e-3", "", None, "lora>pez"], "=2": [1, 2, 3, 4, 5]})
    write_table(frame, tmp_path / "a.csv")

    assert (tmp_path / "a.csv").read_text() == "value,'=2\n-1.5,1\n+2e-3,2\n,3\n,4\nlora>pez,5\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<script>alert(1)</script>", "\\<script>alert(1)\\</script>"),
        ("[x](javascript:alert(1))", "\\[x](javascript:alert(1))"),
        ("a|b\nc`d\\", "a\\|b c\\`d\\\\"),
        ("\x1b[2J", " \\[2J"),
        ("full_finetune", "full_finetune"),
        (">=10", ">=10"),
    ],
)
def test_no_text_is_markup_on_a_page(tmp_path: Path, text: str, written: str) -> None:
    write_table(pd.DataFrame({text: [text]}), tmp_path / "a.md")

    head, _, row = (tmp_path / "a.md").read_text().splitlines()
    assert head == row == f"| {written} |"
