"""The report in a real Chromium: offline, sortable, filterable, readable on a phone and in the dark, hard to break."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect
from torch import Tensor

from benchmark.results.report import page as report
from tests.browsers import chromium
from tests.reports import FACTS, board_of, fill, small_plan

PAINT = """(cells, share) => cells.forEach((cell) => {
  cell.style.setProperty("--share", `${share}%`); cell.className = share >= 79 ? "hot" : "";
})"""
CONTRAST = """() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (color) => {
    pixel.clearRect(0, 0, 1, 1); pixel.fillStyle = color; pixel.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  return [...document.querySelectorAll(".heat tbody td:not(.none)")].map((cell) => {
    const style = getComputedStyle(cell), pair = [light(style.color), light(style.backgroundColor)];
    return Math.max(...pair) / Math.min(...pair);
  });
}"""


pytestmark = pytest.mark.slow  # a browser starts in seconds, and each test takes some


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def write(folder: Path, kind: str = "object", **changes: Any) -> Path:
    """A report of a made-up run whose attack on the weak defense never finished."""
    plan = small_plan(folder, kind=kind, **changes)
    store = fill(plan, folder / "store", skip=lambda task: task.kind == "attack" and "weak" in task.label)
    return report.write(plan, store, board_of(plan, store), FACTS, folder / "out")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("page"))


class Opened:
    """A page, with what it complained about and what it asked for."""

    def __init__(self, browser: Browser, html: Path, *, is_ready: bool = True, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(html.as_uri())
        if is_ready:
            self.page.wait_for_selector("html[data-ready]", state="attached")

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def column(self, table: str, title: str) -> list[str]:
        """The sort keys of a column, from the top."""
        heads = self.page.locator(f"#{table} thead th").all_inner_texts()
        at = next(i for i, head in enumerate(heads) if " ".join(head.split()).startswith(title))
        cells = self.page.locator(f"#{table} tbody td:nth-child({at + 1})")
        return [cell.get_attribute("data-order") or "" for cell in cells.all()]


def test_it_loads_without_errors_or_requests(browser: Browser, html: Path) -> None:
    with Opened(browser, html, offline=True) as opened:
        opened.page.wait_for_load_state("networkidle")
        opened.page.mouse.wheel(0, 10000)

        assert opened.errors == []
        assert [url for url in opened.requests if not url.startswith(("data:", "blob:"))] == [html.as_uri()]
        broken = "imgs => imgs.filter(i => i.complete && !i.naturalWidth).length"
        assert opened.page.locator("img").evaluate_all(broken) == 0


def test_nothing_can_be_fetched_even_by_a_script(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        tried = "fetch('http://127.0.0.1:9/').then(() => 'sent', (e) => e.name)"
        assert opened.page.evaluate(tried) == "TypeError"
        assert any("Content Security Policy" in error for error in opened.errors)


def test_a_click_sorts_and_the_keyboard_sorts_back(browser: Browser, html: Path) -> None:
    """Numbers sort as numbers, and a missing one is last in both directions."""
    with Opened(browser, html) as opened:
        head = opened.page.locator("#cells thead th", has_text="after")
        head.click()
        rising = opened.column("cells", "after")
        expect(head).to_have_attribute("aria-sort", "ascending")
        head.focus() if head.get_attribute("tabindex") else head.locator("[tabindex]").first.focus()
        opened.page.keyboard.press("Enter")
        expect(head).to_have_attribute("aria-sort", "descending")
        falling = opened.column("cells", "after")

        known = sorted(float(v) for v in rising if v)
        assert len(set(known)) > 2 and rising.count("") == 2
        assert rising == [*rising[: len(known)], "", ""] and [float(v) for v in rising if v] == known
        assert falling[-2:] == ["", ""] and [float(v) for v in falling if v] == known[::-1]


def test_typing_and_choosing_filter_the_rows(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        rows = opened.page.locator("#leaderboard tbody tr")
        assert rows.count() == 3
        search = opened.page.locator('.filters[data-for="leaderboard"] input[type=search]')
        search.fill("weak")
        expect(rows).to_have_count(1)
        search.fill("")
        expect(rows).to_have_count(3)

        cells = opened.page.locator("#cells tbody tr")
        status = opened.page.locator('.filters[data-for="cells"] label', has_text="status").locator("select")
        status.select_option("failed")
        expect(cells).to_have_count(2)
        expect(opened.page.locator("#cells tbody")).to_contain_text("not run yet")
        status.select_option("")
        expect(cells).to_have_count(12)


def test_a_broken_image_does_not_break_the_page(browser: Browser, html: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "index.html"
    text = html.read_text()
    start = text.index('src="data:image/webp;base64,', text.index('class="grid"'))
    spoiled.write_text(text[: start + 40] + "AAAA" + text[start + 44 :])
    with Opened(browser, html) as whole, Opened(browser, spoiled) as opened:
        picture = opened.page.locator(".grid img").first
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)

        assert picture.evaluate("i => i.naturalWidth") == 0
        assert opened.errors == []
        assert picture.bounding_box()["width"] == whole.page.locator(".grid img").first.bounding_box()["width"]  # type: ignore[index]
        opened.page.locator("#leaderboard thead th", has_text="defense").click()
        assert opened.column("leaderboard", "defense") == ["esd", "none", "weak"]


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_tables_and_not_the_page(browser: Browser, html: Path, width: int) -> None:
    with Opened(browser, html, viewport={"width": width, "height": 844}) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        opened.page.locator("details").evaluate_all("all => all.forEach((d) => { d.open = true; })")
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_in_the_heat_map_can_be_read_in_both_schemes(browser: Browser, html: Path, scheme: Any) -> None:
    """WCAG AA asks for a contrast of 4.5, at any warmth."""
    with Opened(browser, html, color_scheme=scheme) as opened:
        cells = opened.page.locator(".heat tbody td:not(.none)")
        for share in (0, 30, 60, 78.9, 79, 90, 100):
            cells.evaluate_all(PAINT, share)
            assert min(opened.page.evaluate(CONTRAST)) >= 4.5, share


def test_rank_and_defense_stay_in_view_and_the_rest_waits_for_all_columns(browser: Browser, html: Path) -> None:
    with Opened(browser, html, viewport={"width": 390, "height": 844}) as opened:
        table, region = opened.page.locator("#leaderboard"), opened.page.locator(".scroll:has(#leaderboard)")
        cell = table.locator("tbody tr").first.locator("td.c-defense")
        left = cell.bounding_box()["x"]  # type: ignore[index]
        region.evaluate("r => { r.scrollLeft = 400; }")
        assert region.evaluate("r => r.scrollLeft") > 100
        assert cell.bounding_box()["x"] - left < 10  # type: ignore[index]
        heads = table.locator("thead th:visible").all_inner_texts()
        assert [head.split()[0] for head in heads[:4]] == ["rank", "defense", "status", "flags"]
        assert not any("judge" in head for head in heads)
        opened.page.locator('[data-all="leaderboard"]').check()
        assert any("judge" in head for head in table.locator("thead th:visible").all_inner_texts())


def test_a_defense_can_be_taken_out_of_the_curves(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        line = opened.page.locator('.plot .line[data-series="0"]').first
        expect(line).to_be_visible()
        button = opened.page.locator('.toggle[data-series="0"]')
        button.click()
        expect(line).to_be_hidden()
        expect(button).to_have_attribute("aria-pressed", "false")
        expect(opened.page.locator('.plot .line[data-series="1"]').first).to_be_visible()
        opened.page.locator('[data-show="all"]').click()
        expect(line).to_be_visible()


def test_an_image_opens_beside_the_bases_and_has_an_address(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        box, page = opened.page.locator("#lightbox"), opened.page
        picture = page.locator(".grid tbody").first.locator("tr").nth(2).locator("a.pic").nth(1)
        picture.click()
        expect(box).to_be_visible()
        captions = box.locator("figcaption").all_inner_texts()
        assert [text.split(" · ")[0] for text in captions] == ["model: base", "model: esd"]
        assert all("attack: lora, budget 10" in text and "judge: " in text for text in captions)
        assert page.url.endswith(f"#{picture.get_attribute('id')}")
        page.keyboard.press("ArrowRight")
        expect(box.locator("figcaption").first).to_contain_text("budget 50")
        address = page.url
        page.keyboard.press("Escape")
        expect(box).to_be_hidden()
    with Opened(browser, html) as opened:
        opened.page.goto("about:blank")
        opened.page.goto(address)
        expect(opened.page.locator("#lightbox figcaption").first).to_contain_text("budget 50")
        assert opened.errors == []


def test_a_prompt_is_found_in_every_grid(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        page = opened.page
        expect(page.locator(".grid tbody:visible")).to_have_count(4)
        page.locator("[data-later]").first.click()
        expect(page.locator(".grid tbody:visible")).to_have_count(8)
        page.locator("[data-find]").fill("cat SEVEN")
        expect(page.locator("[data-found]")).to_have_text("2 found")
        expect(page.locator(".grid tbody:visible")).to_have_count(2)
        page.locator("[data-find]").fill("")
        page.locator("[data-returned]").check()
        assert page.locator(".grid tbody:visible").count() == page.locator("tbody[data-back]").count() > 0


def test_links_lead_to_a_defenses_images_and_sections_are_called_as_in_the_navigation(
    browser: Browser, html: Path
) -> None:
    with Opened(browser, html) as opened:
        page = opened.page
        for link in page.locator("nav a").all():
            target = page.locator(f"[id='{(link.get_attribute('href') or '')[1:]}']")
            assert target.inner_text() == link.inner_text()
        block = page.locator("details.block").nth(1)
        assert not block.evaluate("d => d.open")
        page.locator(".heat tr", has_text="weak").locator("a").first.click()
        expect(block).to_have_js_property("open", True)
        assert page.locator("[onclick], [onload], [onerror]").count() == 0


def test_light_and_dark_differ(browser: Browser, html: Path) -> None:
    ground = []
    schemes: list[Any] = ["light", "dark"]
    for scheme in schemes:
        with Opened(browser, html, color_scheme=scheme) as opened:
            ground.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            ink = opened.page.locator(".plot text").first.evaluate("t => getComputedStyle(t).fill")
            ground.append(ink)

    assert len(set(ground)) == 4


def test_every_picture_has_a_text_and_every_control_a_name(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        nameless = """() => [...document.querySelectorAll("img, svg[role=img], [role=region], select, input, a")]
          .filter((e) => !(e.alt || e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim()
            || e.querySelector("img[alt], [aria-label]")))
          .map((e) => e.outerHTML.slice(0, 80))"""
        repeated = """() => { const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
          return ids.filter((id, i) => ids.indexOf(id) !== i); }"""

        assert opened.page.evaluate(nameless) == []
        assert opened.page.evaluate(repeated) == []
        assert opened.page.locator("h1").count() == 1


def test_details_open_by_keyboard(browser: Browser, html: Path) -> None:
    with Opened(browser, html) as opened:
        closed = opened.page.locator("details.block").nth(1)
        closed.locator("summary").focus()
        opened.page.keyboard.press("Enter")

        assert closed.evaluate("d => d.open")


def test_nsfw_pictures_are_veiled_until_clicked(browser: Browser, tmp_path: Path) -> None:
    with Opened(browser, write(tmp_path, kind="nsfw")) as opened:
        blur = "i => getComputedStyle(i).filter"
        pictures = opened.page.locator(".pic img")
        assert set(pictures.evaluate_all("all => all.map((i) => getComputedStyle(i).filter)")) == {"blur(9px)"}
        pictures.first.click()
        assert pictures.first.evaluate(blur) == "none"
        opened.page.locator(".pic input").nth(1).focus()
        opened.page.keyboard.press("Space")
        assert pictures.nth(1).evaluate(blur) == "none" and pictures.nth(2).evaluate(blur) == "blur(9px)"


def test_without_scripts_the_tables_are_still_there(browser: Browser, html: Path) -> None:
    with Opened(browser, html, is_ready=False, java_script_enabled=False) as opened:
        expect(opened.page.locator("#leaderboard tbody tr")).to_have_count(3)
        expect(opened.page.locator(".filters").first).to_be_hidden()


def noise(is_present: bool, shade: float) -> Tensor:
    """The worst that WebP can meet."""
    rng = torch.Generator().manual_seed(int(shade * 1e6) + is_present)
    return torch.randint(0, 256, (3, 64, 64), generator=rng, dtype=torch.uint8)


def test_a_hundred_cells_and_two_thousand_thumbnails_fit(browser: Browser, tmp_path: Path) -> None:
    """Noise is the worst case; drawings take a fifth of it."""
    defenses = ["none", *({"use": "esd", "as": f"d{i}", "lr": 1.0e-6 * (i + 1)} for i in range(5))]
    attacks = ["none", *({"use": "lora", "as": f"a{i}", "rank": i + 2} for i in range(4))]
    plan = small_plan(
        tmp_path, concepts=("cat", "cup"), budgets=[5, 10, 20, 40, 60, 80], defenses=defenses, attacks=attacks
    )
    store = fill(plan, tmp_path / "store", draw=noise)
    html = report.write(plan, store, board_of(plan, store), FACTS, tmp_path / "out")

    assert len(plan.cells) > 100
    assert 1900 < html.read_text().count("<img src") <= 2020
    assert html.stat().st_size < 15e6
    with Opened(browser, html) as opened:
        assert opened.errors == []
        expect(opened.page.locator("#leaderboard tbody tr")).to_have_count(6)


def test_a_script_that_got_into_the_page_does_not_run(browser: Browser, html: Path, tmp_path: Path) -> None:
    bad = "document.title = 'bad'"
    added = f'<script>{bad}</script><script src="data:text/javascript,{bad}"></script><img src="x" onerror="{bad}">'
    (tmp_path / "index.html").write_text(html.read_text().replace('<main id="main">', f'<main id="main">{added}'))

    with Opened(browser, tmp_path / "index.html") as opened:
        assert opened.page.title() != "bad"
        assert sum("Content Security Policy" in error for error in opened.errors) >= 3
