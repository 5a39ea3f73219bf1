"""The documentation does what it says: its blocks run, its tables are those of the code, its site builds and is whole.

What stands in for what while a page is followed is declared at the top of `tests/pages.py`.
"""

import html
import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pandas as pd
import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from benchmark.cli import app, catalog
from benchmark.config import config, registry
from benchmark.data import cards as data
from benchmark.data import sets
from benchmark.imports import read, unpickle
from benchmark.model import bases, load
from benchmark.runner import flags
from benchmark.types import Split
from tests import releases
from tests.browsers import chromium
from tests.pages import ROOT, blocks, commands, small
from tests.reader import Reader
from tests.runs import tiny_config

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


# (a) Every block runs.


@pytest.fixture(scope="module")
def presets(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The presets, made small."""
    folder = tmp_path_factory.mktemp("presets")
    for name in config.presets():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(small(config.read(name), tiny_folder)))
    return folder


@pytest.fixture
def reader(tiny_folder: Path, presets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Somebody in an empty folder, for whom the presets are small."""
    desk = tmp_path / "desk"
    desk.mkdir()
    found = Reader(tiny_folder, desk, monkeypatch.syspath_prepend)
    monkeypatch.setattr(config, "PRESETS", presets)
    monkeypatch.setattr(read, "unpickled", unpickle.main)  # in this process
    monkeypatch.chdir(desk)
    yield found
    found.leave()


LONG = {"README.md", "add-a-defense.md", "add-a-metric.md", "add-an-attack.md", "board.md", "faq.md", "first-run.md"}
LONG |= {"import.md", "own-model.md"}  # several runs each


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in LONG)) for page in PAGES]
)
def test_a_page_can_be_followed_from_the_top(page: Path, reader: Reader) -> None:
    reader.given(page)
    for block in blocks(page):
        reader.follow(block)


def test_a_block_or_command_that_nobody_knows_is_an_error(reader: Reader, tmp_path: Path) -> None:
    for text in ("```perl\n1\n```\n", "```\nplain\n```\n", "```sh\nrm -rf x\n```\n", "```sh\nmake nothing\n```\n"):
        (tmp_path / "page.md").write_text(text)
        (block,) = blocks(tmp_path / "page.md")

        with pytest.raises(AssertionError, match=r"page\.md:1: "):
            reader.follow(block)


def test_a_wrong_block_is_an_error(reader: Reader, tmp_path: Path) -> None:
    wrong = ("yaml\ndefences: [none]", "yaml\nattacks: [lroa]", "sh\ntiter plan demoo", "python\nimport no_such_thing")
    for text in wrong:
        (tmp_path / "page.md").write_text(f"```{text}\n```\n")
        (block,) = blocks(tmp_path / "page.md")

        with pytest.raises(AssertionError, match=r"page\.md:1: "):
            reader.follow(block)


def test_no_fence_is_left_open() -> None:
    for page in PAGES:
        assert len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) == 2 * len(list(blocks(page))), page.name


# (b) The tables are those of the code.


def table(page: str, heading: str) -> list[str]:
    """The first column of the first table under a heading."""
    text = (DOCS / page).read_text()
    part = re.split(rf"^#+ {re.escape(heading)}\n", text, maxsplit=1, flags=re.MULTILINE)[1]
    part = re.split(r"^#+ ", part, maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.search(r"^\|.*\n\| ?-.*\n((?:\|.*\n)+)", part, re.MULTILINE)
    assert rows is not None, heading
    return [re.split(r"(?<!\\)\|", row)[1].strip().strip("`") for row in rows[1].splitlines()]


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run with claims."""
    folder = tmp_path_factory.mktemp("documented")
    claim = {"claim": "c", "defense": "esd", "check": "bound", "number": "presence_before", "at_most": 1.0}
    values = tiny_config(folder, tiny_folder, claims=[claim | {"statement": "s", "source": "s"}])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    shutil.copytree(tiny_run / "store", folder / "store")
    words = ["run", folder / "tiny.yaml", "--out", folder / "out", "--store", folder / "store", "--device", "cpu"]
    for again in (words, ["board", "--reported", *words[1:-2]]):
        result = CliRunner().invoke(app, [str(word) for word in again])
        assert result.exit_code == 0, result.output
    return folder / "out"


def test_every_file_of_a_run_is_documented(run: Path) -> None:
    text = (DOCS / "board.md").read_text()

    for file in run.rglob("*"):
        assert file.is_dir() or str(file.relative_to(run)) in text, file


def test_every_column_is_documented_in_order_and_no_other(run: Path) -> None:
    for file in sorted(run.glob("*.csv")):
        written = list(pd.read_csv(file).columns)
        documented = table("board.md", file.name)
        if file.name == "matrix.csv":
            assert documented.pop() == "one for each attack"
            written = written[:3]
        if file.name == "leaderboard.csv":
            documented.remove("any other")
        if file.name == "records.csv":  # in the order in which the tasks' costs name them
            documented, written = sorted(documented), sorted(written)
        assert documented == written, file.name


def test_every_number_status_and_flag_is_documented(run: Path) -> None:
    from leaderboards import cells, variance

    numbers = table("board.md", "Numbers of a cell")
    assert numbers[-1] == "any other"
    assert {*cells.NUMBERS, *cells.FURTHER, "clip_score"} == set(numbers[:-1])
    assert {*cells.STATUSES, *cells.COMPLETE, "partial"} == set(table("board.md", "Status of a cell"))
    sources = (DOCS / "board.md").read_text().partition("| `source` |")[2].partition("\n")[0]
    assert re.findall(r"`([^`]+)`", sources) == list(variance.SOURCES)
    raised = set(re.findall(r'append\("([^"]+)"\)', Path(flags.__file__).read_text()))
    stages = "".join(file.read_text() for file in (ROOT / "benchmark" / "runner" / "stages").glob("*.py"))
    raised |= set(re.findall(r'\["([a-z ]+)"\] (?:\*|if)', stages))
    text = (DOCS / "board.md").read_text()
    assert raised >= {"zero delta", "stopped early", "small sample", "metric raised"}
    assert [flag for flag in sorted(raised) if f"| `{flag}` |" not in text] == []


def test_every_key_of_run_json_is_documented(run: Path) -> None:
    assert set(table("board.md", "run.json")) == set(json.loads((run / "run.json").read_text()))


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a config, those of nested mappings with dots."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from keys(part, f"{prefix}{name}.")


def test_every_key_of_a_config_is_documented() -> None:
    assert set(table("config.md", "Keys")) == set(keys(config.Raw))


def test_every_key_of_an_entry_is_documented() -> None:
    known = {name for kind in registry.FOLDERS for case in config.cases(kind) for name in case["then"]["properties"]}
    fields = {f for kind in registry.FOLDERS for name in registry.names(kind) for f in own_fields(kind, name)}

    assert known - fields <= set(table("config.md", "Entries"))


def own_fields(kind: registry.PluginKind, name: str) -> set[str]:
    return set(registry.find(kind, name).__dataclass_fields__)


def test_every_key_of_a_card_and_every_split_is_documented() -> None:
    assert set(table("concepts.md", "A card")) == set(data.Card.model_fields)
    assert set(table("concepts.md", "Splits")) == set(get_args(Split))


def test_every_key_of_a_table_of_prompts_and_every_set_is_documented() -> None:
    assert set(table("concepts.md", "Prompt sets")) == {*sets.Listed.model_fields, *sets.Pictures.model_fields}
    text = (DOCS / "concepts.md").read_text()
    assert [name for name in sets.SETS if f"| `{name}` |" not in text] == []


def test_every_preset_and_model_is_documented() -> None:
    assert set(table("config.md", "Presets")) == set(config.presets())
    text = (DOCS / "own-model.md").read_text()
    assert [name for name in bases.PRESETS if f"`{name}`" not in text] == []


def test_every_release_and_every_key_of_an_import_is_documented(tiny_folder: Path, tmp_path: Path) -> None:
    lines = [block.text for block in blocks(DOCS / "import.md") if block.language == "sh"]
    typed = {words[2] for text in lines for words in commands(text) if words[1] == "import"}
    assert typed == set(releases.RELEASES)
    releases.full(load(tiny_folder), tmp_path / "a.safetensors", tiny_folder)
    words = ["--base", tiny_folder, "--concept", "cat", "--method", "esd", "-o", tmp_path / "out"]
    CliRunner().invoke(app, [str(word) for word in ("import", tmp_path / "a.safetensors", *words)])
    note = json.loads((tmp_path / "out" / "import.json").read_text())
    assert table("import.md", "import.json") == list(note)


# (c) The command.


def generator(name: str) -> ModuleType:
    """A hook of the site."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def every_command(command: Any, path: tuple[str, ...] = ("titer",)) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, (*path, name))


def test_every_command_and_option_is_on_the_page_of_the_command() -> None:
    page = "\n".join(generator("gen_cli").page())
    found = dict(every_command(typer.main.get_command(app)))

    assert {"titer run", "titer store gc", "titer new"} <= set(found)
    for path, command in found.items():
        if hasattr(command, "commands"):
            continue
        part = page.partition(f"## {path} {{")[2].partition("\n## ")[0]
        assert command.help, path
        assert " ".join(command.help.split())[:40] in part.replace("\\|", "|"), path
        for param in command.params:
            words = param.opts if param.param_type_name == "option" else [param.name.upper()]
            assert [word for word in words if f"`{word}" not in part] == [], path
            assert param.help or param.param_type_name == "argument", f"{path} {words}: expected a help text"


def test_every_command_has_an_example_in_a_page() -> None:
    typed = "\n".join(block.text for page in PAGES for block in blocks(page) if block.language == "sh")

    for path, command in every_command(typer.main.get_command(app)):
        assert hasattr(command, "commands") or path in typed, path


# (d), (e) The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning is an error. Links, anchors and images inside it are checked by that."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    settings = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        settings.plugins.on_startup(command="build", dirty=False)
        build(settings)
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
        settings.plugins.on_shutdown()
    assert said == []
    return folder


def test_the_site_builds_without_a_warning_and_asks_for_nothing_else(site: Path) -> None:
    """And every page is in its navigation."""
    index = (site / "index.html").read_text()

    for page in DOCS.rglob("*.md"):
        assert f'href="{page.relative_to(DOCS).with_suffix(".html")}"' in index or page.name == "index.md", page
    for page in site.rglob("*.html"):
        text = page.read_text()
        asked = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?([^\s\">]+)", text)
        asked += re.findall(r"@import[^;]*|url\([^)]*\)", text)
        assert [address for address in asked if "//" in address and not address.startswith("data:")] == [], page


def words_of(page: Path) -> str:
    """The text of a built page on one line."""
    text = page.read_text().partition("<article")[2].partition("</article>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def bare(text: str) -> str:
    return re.sub(r"[\s`]+", "", text)


def test_the_pages_of_the_methods_say_all_that_the_code_says(site: Path) -> None:
    """Every line at the top of a file, every field with its default, every preset and badge."""
    headings = re.compile(rf"^({'|'.join(generator('gen_methods').HEADINGS)})\s\s+")
    for plural, kind in catalog.KINDS.items():
        page = words_of(site / "methods" / f"{plural}.html")
        for name in registry.builtin(kind):
            facts = catalog.plugin(kind, name)
            part = bare(page.partition(f" {name} ¶ ")[2].partition(" ¶ ")[0])
            for line in facts["documentation"].split("\n"):
                assert bare(headings.sub("", line)) in part, (name, line)
            for field, default in facts["fields"].items():
                assert bare(field) in part, (name, field)
                assert bare(json.dumps(default)) in part or default == "required", (name, field)
            assert [preset for preset in facts["presets"] if bare(preset) not in part] == []
            if kind == "defense":
                assert bare(registry.find(kind, name).matched) in part, name


@pytest.mark.filterwarnings("ignore")
def test_the_embedded_pipeline_draws_at_its_first_call_as_the_readme_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a type, the text encoder keeps its files' 16 bits and the U-Net takes 32: the call fails."""
    (line,) = re.findall(r"`(StableDiffusionPipeline\.from_pretrained\([^`]+\))`", (ROOT / "README.md").read_text())
    names: dict[str, Any] = {}
    exec("import torch\nfrom diffusers import StableDiffusionPipeline", names)
    monkeypatch.chdir(ROOT)

    pipeline = eval(line, names)

    assert pipeline("an emoji of a cat", num_inference_steps=2).images[0].size == (64, 64)


def test_links_and_pictures_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()

    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in address:
            assert (ROOT / address.partition("#")[0]).exists(), address


@pytest.mark.slow
def test_the_site_works_from_the_disk_in_a_browser(site: Path) -> None:
    """Without an error or a request to the network, with a search that finds, at both widths."""
    errors, requests = list[str](), list[str]()
    with chromium() as browser:
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            for file in ("index.html", "board.html", "methods/defenses.html"):
                page.goto((site / file).as_uri())
                overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert overflow <= 0, (file, width)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto((site / "index.html").as_uri())
        page.click("input[name=query]")
        page.keyboard.type("Holm")
        page.wait_for_function("document.querySelector('.md-search-result').innerText.includes('Holm')")
    assert errors == []
    assert [address for address in requests if not address.startswith(("file:", "data:", "blob:"))] == []
