"""The report says what is in the store and on the board, and shows what was drawn; nothing is left out silently."""

import ast
import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmark.errors import TiterError
from benchmark.plan import Plan
from benchmark.results.report import (
    fields,
    figures,
    gallery,
    labels,
    legend,
    page,
    pictures,
    series,
    tables,
    tradeoff,
    weak,
)
from benchmark.results.report import story as stories
from benchmark.results.report.sketch import Panel, Sketch
from benchmark.store import Store
from benchmark.store.artifacts import load_images
from leaderboards.board import Board
from leaderboards.cells import DOUBT
from tests.reports import FACTS, board_of, fill, small_plan

Run = tuple[Plan, Store, Board]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which the attack on the weak defense has not finished."""
    folder = tmp_path_factory.mktemp("made-up")
    plan = small_plan(folder)
    store = fill(plan, folder / "store", skip=lambda task: task.kind == "attack" and "weak" in task.label)
    return plan, store, board_of(plan, store)


@pytest.fixture(scope="module")
def text(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page.write(*run, FACTS, tmp_path_factory.mktemp("out")).read_text()


def decode(source: str) -> np.ndarray[Any, Any]:
    """Pixels (H, W, 3) of a data URI."""
    head, _, payload = source.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(payload))).convert("RGB"))


def test_the_page_names_every_defense_attack_and_concept(text: str, run: Run) -> None:
    plan, _, board = run
    for name in {*board.leaderboard["defense"], *(cell.attack for cell in plan.cells), "cat", "made-up"}:
        assert name in text


def test_cells_that_are_not_ok_are_counted_and_carry_their_reason(text: str, run: Run) -> None:
    board = run[2]
    failed = board.cells[board.cells["status"] == "failed"].drop_duplicates(tables.CELL)

    assert len(failed) == 2  # the attack's two budgets
    assert page.statuses(board) == {"ok": 10, "failed": 2}
    assert "<b>2</b> cells of weak under lora: not run yet" in text
    assert "cat/weak/lora@10#0, cat/weak/lora@50#0" in text


def test_flags_are_told_with_their_task(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    store = fill(plan, tmp_path / "store")
    told = weak.warnings(plan, board_of(plan, store), {k: store.meta(k) for k in plan.tasks})

    assert told["flags"] == [("zero delta", ["lora on weak, cat, seed 0"])]
    assert (told["cells"]["rows"], told["skipped"]) == ([], [])


def test_cells_in_doubt_are_told(run: Run) -> None:
    plan, _, board = run
    rows = board.cells.copy()
    rows.loc[(rows["attack"] == "lora") & (rows["number"] == "clip_score") & (rows["budget"] == 10), "flag"] = DOUBT
    told = weak.warnings(plan, replace(board, cells=rows), {})["cells"]["rows"]

    found = {line[1].text: line for _, line in told if line[0].text == "in doubt"}
    assert set(found) == {"esd", "none", "weak"}
    assert found["weak"][-1].text == DOUBT and found["weak"][-1].parts == ("cat/weak/lora@10#0",)


def test_the_cost_is_the_sum_of_what_the_store_says(run: Run) -> None:
    plan, store, _ = run
    metas = {key: store.meta(key) for key in plan.tasks if store.has(key)}
    lines = page.cost(plan, metas)

    assert sum(line["done"] for line in lines) == len(metas)
    assert sum(line["seconds"] for line in lines) == pytest.approx(1.5 * len(metas))
    assert sum(line["forward"] for line in lines) == sum(plan.tasks[key].passes for key in metas)


def test_the_page_asks_for_nothing_from_outside(text: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)

    assert policy and "default-src 'none'" in policy[1]
    shell = re.sub(r'const bundle = "[^"]*"', "", text)
    assert not re.findall(r'(?:src|href|action)="(?!data:|#|\.\./)[^"]*"|url\((?!#)|@import', shell)


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    """A label may hold anything; on the page it is text."""
    label = '<script>alert("$x_1$ & co")</script>'
    plan = small_plan(tmp_path, attacks=["none", {"use": "lora", "as": label}])
    store = fill(plan, tmp_path / "store")
    text = page.write(plan, store, board_of(plan, store), FACTS, tmp_path / "out").read_text()

    assert label not in text
    assert "&lt;script&gt;alert(" in text


def test_the_grid_pairs_base_and_defended_images_of_one_prompt(run: Run) -> None:
    """Each picture is the stored image 0 of its prompt, in the order: unattacked, then the budgets."""
    plan, store, board = run
    shown = pictures.Pictures(plan, store)
    found = gallery.blocks(shown, board.cells)

    assert [(b.concept, b.defense, b.groups) for b in found] == [
        ("cat", "esd", [("lora", [10, 50])]),
        ("cat", "weak", [("lora", [10, 50])]),
    ]
    assert [[line.who for line in row.lines] for row in found[0].rows] == [["base", "esd"]] * 8
    cells = {(c.defense, c.budget): c for c in plan.cells if c.attack == "lora"}
    for row, shown_row in enumerate(found[0].rows):
        for who, line in zip(("none", "esd"), shown_row.lines, strict=True):
            assert [picture.budget for picture in line.pictures] == [0, 10, 50]
            for picture in line.pictures:
                cell = cells[who, picture.budget]
                stored = load_images(store.path(cell.images["concept"]))
                at = stored.prompt_ids.index(plan.tasks[cell.images["concept"]].prompts[row].id)
                error = decode(picture.source).astype(int) - stored.images[at].permute(1, 2, 0).numpy()
                assert np.abs(error).mean() < 12


def test_verdicts_are_those_of_the_judge(run: Run) -> None:
    """Presence in the board is the share of prompts whose one picture says seen."""
    plan, store, board = run
    shown = pictures.Pictures(plan, store)
    for cell in (c for c in plan.cells if c.defense == "esd" and c.attack == "lora"):
        seen = list(shown.judged(cell).values())
        row = board.curves[(board.curves[["defense", "attack", "budget"]] == ["esd", "lora", cell.budget]).all(axis=1)]
        assert seen.count("seen") / len(seen) == pytest.approx(row["presence"].iloc[0])


@pytest.mark.parametrize(
    ("value", "said"), [(1.0, "seen"), (0.0, "absent"), (None, "unknown"), (float("nan"), "unknown")]
)
def test_a_missing_score_is_no_verdict(value: float | None, said: str) -> None:
    assert pictures.verdict(value) == said


def test_alt_text_says_prompt_model_attack_and_verdict(run: Run) -> None:
    shown = pictures.Pictures(run[0], run[1])
    alts = [p.alt for line in gallery.blocks(shown, run[2].cells)[0].rows[0].lines for p in line.pictures]

    assert alts[0] == "“a cat one”; model: base; attack: no attack; judge: concept seen"
    assert re.fullmatch(r"“a cat one”; model: esd; attack: lora, budget 50; judge: concept (not )?seen", alts[-1])


def test_pictures_of_an_unfinished_attack_are_missing_and_say_so(text: str, run: Run) -> None:
    shown = pictures.Pictures(run[0], run[1])
    unfinished = gallery.blocks(shown, run[2].cells)[1]

    assert [p.source == "" for p in unfinished.rows[0].lines[1].pictures] == [False, True, True]
    assert (
        'aria-label="no readable image; “a cat one”; model: weak; attack: lora, budget 10; judge: not judged"' in text
    )


@pytest.mark.parametrize("harm", ["png", "parquet", "file"])
def test_an_unreadable_image_leaves_a_gap_and_nothing_else(tmp_path: Path, harm: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plan = small_plan(tmp_path)
    store = fill(plan, tmp_path / "store")
    board = board_of(plan, store)
    key = next(c.images["concept"] for c in plan.cells if c.defense == "esd" and c.budget == 10)
    path = store.path(key) / "images.parquet"
    if harm == "png":
        rows, meta = pq.read_table(path).to_pylist(), store.meta(key)
        rows[0]["image"]["bytes"] = b"no image"
        shutil.rmtree(path.parent)  # put anew: the store takes no altered file for a result
        store.put(key, lambda folder: pq.write_table(pa.Table.from_pylist(rows), folder / path.name), meta)
    elif harm == "parquet":
        path.write_bytes(b"no parquet")
    else:
        path.unlink()

    text = page.write(plan, store, board, FACTS, tmp_path / "out").read_text()
    lines = gallery.blocks(pictures.Pictures(plan, store), board.cells)[0].rows
    lost = [p.source == "" for row in lines for p in row.lines[1].pictures if p.budget == 10]

    assert lost == [True, *[False] * 7] if harm == "png" else all(lost)
    assert text.count('class="gone"') == sum(lost) + text.split('<h2 id="leaderboard-title"')[0].count('class="gone"')
    assert text.rstrip().endswith("</html>")


def noisy(is_present: bool, shade: float) -> Tensor:
    """A picture (3, 64, 64) that compresses badly."""
    rng = torch.Generator().manual_seed(int(shade * 1e6) + is_present)
    return torch.randint(0, 256, (3, 64, 64), generator=rng, dtype=torch.uint8)


def test_an_nsfw_suite_is_blurred_in_its_pixels_and_quotes_no_prompt(tmp_path: Path) -> None:
    """Neighbouring pixels of noise differ by 85 on average, independent of each other; blurred ones hardly do."""
    found = {}
    for kind in ("object", "nsfw"):
        plan = small_plan(tmp_path / kind, kind=kind)
        store = fill(plan, tmp_path / kind / "store", draw=noisy)
        text = page.write(plan, store, board_of(plan, store), FACTS, tmp_path / kind / "out").read_text()
        sources = re.findall(r'<img src="([^"]+)"', text)
        steps = [np.abs(np.diff(decode(s).astype(int), axis=1)).mean() for s in sources]
        found[kind] = (min(steps), max(steps), "a cat one" in text, text.count(" veiled"), len(sources))

    assert found["object"][0] > 20 and found["object"][2:4] == (True, 0)
    assert found["nsfw"][1] < 4 and found["nsfw"][2:4] == (False, found["nsfw"][4])


def test_a_large_run_shows_fewer_prompts_then_fewer_attacks_and_says_which(run: Run, tmp_path: Path) -> None:
    ranks = (2, 4, 8)
    attacks = ["none", *({"use": "lora", "as": f"lora{rank}", "rank": rank} for rank in ranks)]
    plan = small_plan(tmp_path, attacks=attacks)
    store = fill(plan, tmp_path / "store")
    board, shown = board_of(plan, store), pictures.Pictures(plan, store)
    for most in (112, 60, 28, 12):
        blocks = gallery.blocks(shown, board.cells, most)
        count = sum(len(line.pictures) for b in blocks for row in b.rows for line in row.lines)
        assert 0 < count <= most
        for b in blocks:
            assert {a for a, _ in b.groups} | set(b.left_out) == {f"lora{rank}" for rank in ranks}
    assert [len(b.groups) for b in blocks] == [1, 1]
    own = board.cells[(board.cells["defense"] == "esd") & (board.cells["number"] == "presence_after")]
    largest = own.groupby("attack")["value"].max().drop("none")
    assert largest[blocks[0].groups[0][0]] == largest.max()


def test_thumbnails_are_small() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((512, 256, 3), dtype=np.uint8)).save(buffer, "PNG")

    assert decode(pictures.thumbnail(buffer.getvalue(), 96, False)).shape == (96, 48, 3)


def test_the_story_is_a_prompt_that_was_lost_and_came_back(run: Run) -> None:
    story = stories.story(pictures.Pictures(run[0], run[1]), run[2].cells)

    assert story
    assert (story.concept, story.defense, story.attack) == ("cat", "esd", "lora")
    verdicts = [story.base.verdict, story.steps[0].verdict, story.steps[-1].verdict]
    assert verdicts == ["seen", "absent", "seen"]
    assert story.title == "The concept comes back"
    assert 0 < story.returned <= story.erased <= story.known <= story.pairs == 8


def test_the_story_shows_what_the_judge_is_surest_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = pictures.Pictures(run[0], run[1])
    found = stories.verdicts(shown, "cat", "esd", "lora")
    candidates = [p for p, verdicts in found.items() if verdicts == ("seen", "absent", "seen")]
    names = {p.id: name for p, name in shown.prompts(shown.at["cat", "esd", "lora", 0])}
    assert len(candidates) > 1
    for best in candidates:
        monkeypatch.setattr(shown, "doubt", lambda _, best=best: dict.fromkeys(found, 0.4) | {best: 0.1})

        told = stories.story(shown, run[2].cells)

        assert told and told.prompt == names[best]


def test_the_doubt_of_a_judge_is_how_far_its_share_is_from_its_verdict(run: Run) -> None:
    shown = pictures.Pictures(run[0], run[1])
    cell = shown.at["cat", "none", "none", 0]
    table = pd.read_parquet(run[1].path(cell.scores["presence", "concept"]) / "scores.parquet")
    first = table[table["number"] == 0].set_index("prompt_id")
    share = first["p"] if "p" in first else first["value"]

    assert shown.doubt(cell) == pytest.approx((first["value"] - share).abs().to_dict())


@pytest.mark.parametrize(
    ("always", "title"), [(0.0, "The concept stayed away"), (1.0, "The defense did not remove the concept")]
)
def test_the_story_is_honest_when_nothing_came_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: float, title: str
) -> None:
    from tests import reports

    def chance(plan: Plan) -> dict[str, float]:
        return {cell.images["concept"]: 1.0 if cell.defense == "none" else always for cell in plan.cells}

    monkeypatch.setattr(reports, "chance", chance)
    plan = small_plan(tmp_path)
    store = fill(plan, tmp_path / "store")
    story = stories.story(pictures.Pictures(plan, store), board_of(plan, store).cells)

    assert story and story.title == title and story.returned == 0


def test_a_run_without_attacks_or_defenses_still_has_a_page(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, defenses=["none"], attacks=["none"])
    store = fill(plan, tmp_path / "store")
    text = page.write(plan, store, board_of(plan, store), {}, tmp_path / "out").read_text()

    assert "No defense was run." in text and "No attack with a budget was measured." in text


def test_a_run_where_everything_failed_still_has_a_page(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    store = fill(plan, tmp_path / "store", skip=lambda _: True)
    text = page.write(plan, store, board_of(plan, store), FACTS, tmp_path / "out").read_text()

    assert "<b>4</b> cells of 3 defenses: not run yet" in text or "not run yet" in text
    assert "0.00" not in text.split("<main")[1].split('id="cost"')[0]  # a missing number is never zero


def test_pairs_of_defenses_are_compared_as_on_the_board(run: Run) -> None:
    told = {line[0].text: line[1].text for _, line in tables.comparisons(run[2])["rows"]}
    rows = run[2].leaderboard.set_index("defense")["worst_presence"]

    assert set(told) == {"esd minus none", "esd minus weak", "none minus weak"}
    assert told["esd minus none"].split(" ")[0] == f"{rows['esd'] - rows['none']:.2f}"


def test_a_missing_number_is_a_dash_and_sorts_as_missing() -> None:
    assert fields.field("worst_presence", float("nan")) == fields.Field(text=fields.DASH, order="", is_number=True)
    assert fields.field("kid", pd.NA).text == fields.DASH
    assert fields.field("worst_presence", 0.5, 0.25, 1.0).span == (25.0, 50.0, 100.0)
    assert fields.field("clip_score", 31.25, 30.0, 32.0).span is None


def test_a_censored_titer_sorts_just_above_the_same_budget() -> None:
    orders = [fields.field("titer", value).order for value in ("50", ">=50", "100")]

    assert orders == sorted(orders) and len(set(orders)) == 3
    assert fields.field("titer", ">=50").text == "≥ 50"


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(0.9, 0.8), (0.8, 0.3), (0.7, 0.3), (0.5, 0.1), (0.4, 0.2), (0.9, 0.8)]
    rows = pd.DataFrame(points, columns=["retained_accuracy", "worst_presence"])

    found = tradeoff.front(rows, "retained_accuracy")

    assert list(found.itertuples(index=False, name=None)) == [(0.5, 0.1), (0.8, 0.3), (0.9, 0.8), (0.9, 0.8)]


def test_figures_are_written_for_a_paper(run: Run, tmp_path: Path) -> None:
    files = figures.save(run[2], tmp_path / "figures")

    assert {f.name for f in files} == {f"{n}.{s}" for n in ("curves", "pareto", "matrix") for s in ("pdf", "png")}
    assert sorted(files) == sorted((tmp_path / "figures").iterdir())
    for file in files:
        assert file.read_bytes().startswith(b"%PDF" if file.suffix == ".pdf" else b"\x89PNG")
        if file.suffix == ".png":
            with Image.open(file) as image:
                darkest = int(np.asarray(image.convert("L")).min())
                assert round(image.info["dpi"][0]) == 300 and darkest < 60


def test_a_curve_draws_the_board_and_differs_from_other_figures_only_in_ids(run: Run) -> None:
    board = run[2]
    (_, part), styles = series.panels(board)[0], series.looks(board)
    one, two = (figures.curve_svg(part, styles, prefix, "a label") for prefix in ("a", "b"))

    row = part[(part["defense"] == "esd") & (part["budget"] == 50)].iloc[0]
    tip = f"esd, budget 50: {row['presence']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    assert f"<title>{tip}</title>" in one
    assert 'aria-label="a label"' in one and "var(--s0)" in one and "#0072b2" not in one
    assert not set(re.findall(r'\bid="([^"]+)"', one)) & set(re.findall(r'\bid="([^"]+)"', two))
    assert re.sub(r'(id="|#)a-', r"\1b-", one) == two


def test_looks_differ(run: Run) -> None:
    names = [f"d{i}" for i in range(20)]
    board = replace(run[2], leaderboard=pd.DataFrame({"defense": [*names, "none"]}))
    found = series.looks(board)

    assert list(found) == names
    assert len({(look.color, look.marker, look.dash) for look in found.values()}) == 20


def test_importing_the_report_needs_no_torch_and_no_drawing_library() -> None:
    code = (
        "import sys; from benchmark.results.report import page, gallery; "
        "bad = {'torch', 'jinja2', 'matplotlib', 'itables', 'benchmark.runner.stages'} & set(sys.modules); "
        "assert not bad, bad"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_writing_a_report_needs_no_torch() -> None:
    """The page reads parquet itself."""
    for file in Path("benchmark/results/report").glob("*.py"):
        names = {n.module or "" for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)}
        assert not {
            n for n in names if n.startswith(("torch", "benchmark.store.artifacts", "benchmark.runner.stages"))
        }, file


@pytest.mark.slow
def test_a_large_boards_figures_are_the_same_drawn_by_a_second_process(run: Run) -> None:
    """Many defenses, so that all dashes are used; a missing point and a missing interval."""
    frame, leaders = run[2].curves, run[2].leaderboard
    some = frame[frame["defense"] != "none"].iloc[:4]
    one = some.assign(presence=[0.5, None, 0.25, 1.0], ci_low=[0.4, None, None, 0.9])
    looks = {
        f"d{i}": series.Look(color=series.SERIES[i % 7], marker="o", dash=series.DASHES[i // 7]) for i in range(15)
    }
    utility = series.utilities(run[2])[0]
    panels = [
        Panel(rows=pd.concat([one.assign(defense=name) for name in looks], ignore_index=True), label="first"),
        Panel(rows=one.assign(defense="d3"), label="second"),
        Panel(rows=leaders[[*series.WORST, utility]], label="third", utility=utility),
    ]

    def drawn(count: int) -> list[str]:
        with Sketch(count) as sketch:
            sketch.ask(panels, looks)
            assert bool(sketch.process) == (count > 8)
            return sketch.drawn()

    assert drawn(30) == drawn(2)
    assert len(drawn(2)) == 3


def test_a_second_process_that_fails_says_of_what(run: Run) -> None:
    with Sketch(30) as sketch:
        sketch.ask([Panel(rows=run[2].curves.drop(columns="presence"), label="x")], {})
        with pytest.raises(TiterError, match="presence"):
            sketch.drawn()


def test_no_second_process_stays_behind() -> None:
    with pytest.raises(KeyboardInterrupt), Sketch(30) as sketch:
        raise KeyboardInterrupt

    assert sketch.process is not None
    assert sketch.process.poll() is not None


def boxes_of(placed: dict[Any, Any], texts: dict[Any, str]) -> list[labels.Box]:
    def size(text: str) -> tuple[float, float]:
        lines = text.split("\n")
        return labels.WIDE * labels.SIZE * max(map(len, lines)), labels.HIGH * len(lines)

    return [labels.label_box(place, offset, size(texts[place])) for place, offset in placed.items()]


def test_labels_cover_neither_each_other_nor_intervals_and_stay_inside() -> None:
    frame = (0.0, 0.0, 200.0, 150.0)
    texts = {
        (20.0, 140.0): "none (base)",
        (22.0, 140.0): "gift",
        (21.0, 138.0): "patronus-decoder",
        (190.0, 10.0): "esd",
    }
    bar = (110.0, 20.0, 115.0, 150.0)
    placed = labels.arrange(texts, [bar, *(labels.around(point, 5.0) for point in texts)], frame)
    boxes = boxes_of(placed, texts)

    assert set(placed) == set(texts)
    for i, box in enumerate(boxes):
        assert labels.cost(box, [bar, *boxes[:i], *boxes[i + 1 :]], frame) == 0


def test_a_label_of_many_names_says_how_many_more() -> None:
    names = [f"defense-{i}" for i in range(20)]
    text = labels.shortened(names)

    assert " ".join(text.split()).startswith("defense-0, defense-1") and text.count("\n") < labels.LINES
    assert re.search(r"and (\d+) more$", " ".join(text.split())) and labels.shortened(["a", "b"]) == "a, b"


def test_no_headline_says_that_something_stayed_away_which_was_never_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a base that never shows the concept nothing is lost and nothing can come back."""
    from tests import reports

    monkeypatch.setattr(reports, "chance", lambda plan: dict.fromkeys(plan.tasks, 0.0))
    plan = small_plan(tmp_path)
    store = fill(plan, tmp_path / "store")
    board = board_of(plan, store)
    story = stories.story(pictures.Pictures(plan, store), board.cells)
    text = page.write(plan, store, board, FACTS, tmp_path / "out").read_text()

    assert story and (story.known, story.erased, story.returned) == (0, 0, 0)
    assert story.title == "The base does not show the concept" and story.weakness.startswith("invalid: the positive")
    assert "says nothing about a defense" in text and "stayed away" not in text
    assert "comes back most often" not in text


def test_what_the_base_does_not_show_can_neither_be_lost_nor_come_back() -> None:
    found: stories.Verdicts = {
        "a": ("seen", "absent", "seen"),
        "b": ("seen", "absent", "absent"),
        "c": ("seen", "seen", "seen"),
        "d": ("absent", "absent", "seen"),
        "e": ("unknown", "absent", "seen"),
    }
    assert stories.came_back(found) == (3, 2, 1)


def test_flags_judge_and_status_stand_before_the_first_number(run: Run, tmp_path: Path) -> None:
    plan, store, board = run
    flags = "one judge; clip_score: images may have collapsed in 2 of 6 cells"
    told = replace(board, leaderboard=board.leaderboard.assign(flags=[flags, "one judge", "one judge"]))
    text = page.write(plan, store, told, FACTS, tmp_path).read_text()
    first = text[text.index('<aside class="notes"') : text.index('id="story-title"')]

    assert "p&gt;=0.5@mini:judge" in first or str(board.leaderboard["judge"].iloc[0]) in first
    assert "<b>one judge</b>: all rows" in first
    assert (
        f"<b>clip_score: images may have collapsed</b>: {board.leaderboard['defense'].iloc[0]} (2 of 6 cells)" in first
    )
    assert "not run yet" in first
    heads = [title.name for title in tables.leaderboard(told, {})["titles"]]
    assert heads[:4] == ["rank", "defense", "status", "flags"]


def test_each_column_of_the_leaderboard_has_words_and_a_meaning() -> None:
    from benchmark.results.report.columns import HIDDEN, title
    from leaderboards.board import LEADERBOARD

    for name in set(LEADERBOARD) - set(HIDDEN):
        found = title(name)
        assert "_" not in found.text and found.meaning and "own label" not in found.meaning, name


def test_a_censored_titer_at_zero_is_unknown_and_not_an_achievement() -> None:
    found = fields.field("titer", ">=0")

    assert (found.text, found.order) == ("unknown", "") and "budget above 0" in found.hint


def test_neighbours_that_do_not_differ_carry_a_sign(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    board = board_of(plan, fill(plan, tmp_path / "store"))
    pairs = board.comparisons["number"] == "worst_presence"
    for p, expected in ((0.5, 1), (0.001, 0), (float("nan"), 1)):
        rows = board.comparisons.copy()
        rows.loc[pairs, "p_holm"] = p
        found = tables.ties(replace(board, comparisons=rows))
        assert len(found) == expected and all("not shown to differ" in text for text in found.values())


def test_the_axis_of_budgets_says_what_they_count(tmp_path: Path) -> None:
    attacks = ["lora", "img2img", "diffusion_completion", "paraphrase", {"use": "ring_a_bell", "after": "lora"}]
    plan = small_plan(tmp_path, attacks=attacks)

    found = series.units(plan)
    assert found["lora"] == "optimizer steps" and "skipped" in found["img2img"] and found["paraphrase"] == "try"
    assert "base draws" in found["diffusion_completion"]
    assert found["lora>ring_a_bell"] == "optimizer steps, then generations"


def test_the_legend_tells_as_many_defenses_apart_as_the_curves(run: Run) -> None:
    board = replace(run[2], leaderboard=pd.DataFrame({"defense": [f"d{i}" for i in range(30)]}))
    signs = legend.legend(series.looks(board))

    assert len({(sign.color, sign.shape, sign.dashes) for sign in signs}) == 30
    assert len({sign.color for sign in signs[:10]}) == 10


def test_anchors_of_names_that_look_alike_differ(run: Run) -> None:
    shown = pictures.Pictures(run[0], run[1])
    names = [("images", "a b"), ("images", "a-b"), ("images", "A/b"), ("images", "a", "b")]

    assert len({shown.slug(*name) for name in names}) == 4
    assert shown.slug("images", "a b") == shown.slug("images", "a b") == "images-a-b"
