"""The blocks of the documentation, and what stands in for what while `tests.reader` follows them.

Nothing is skipped but by a line of these tables: a block or a command that they do not know is an error.
"""

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.config import config, imported, registry
from benchmark.config.entries import SEARCH
from benchmark.kit import conformance

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))

# A config, a preset among them, is parsed as it is written; before a command runs it, it is made small:
SMALL: dict[str, Any] = {
    "model": "the tiny random pipeline of benchmark.kit.conformance",
    "sampling": {"steps": 2, "guidance": 2.0},
    "draws": 100,
    "seeds": [0],
    "prompts": dict.fromkeys(("concept", "retained", "safe", "attacker", "defender", "prior", "benign"), 2),
    "images": {},
    "budgets": "the largest one alone, at most MOST steps",
    "adaptation": "one step",
}
# The fields of methods become those of `conformance.SMALL`, judges and embedders those of `conformance.ON_MINI`.
# Of a preset that crosses many methods these are kept, by label; of every config the first three metrics:
KEPT: dict[str, set[str]] = {name: {"none", "esd", "lora"} for name in config.presets() if name != "smoke"}
METRICS = 3
MOST = 30
# Options of `titer`: what is done with them and their values before the command is called.
OPTIONS: dict[str, str] = {
    "--executor": "the plan is shown instead (`--dry-run`): tests of the executors start workers",
    "--workers": "as `--executor`",
    "--track": "left out, if there is such a tracker: their packages are others'",
    "--model": "the tiny pipeline",
    "--device": "cpu",
    "--base": "the tiny pipeline of its family, and the checkpoint before it is made by `tests.releases`",
}
WORDS = {"CONFIG": "smoke"}  # what stands in a page for the reader's own
# Files that a page takes for granted: the titled block of another page, under this name.
GIVEN: dict[str, dict[str, tuple[str, str]]] = {
    "README.md": {"my.yaml": ("docs/first-run.md", "first.yaml")},
}
# Commands for which something else is done here than the shell would do.
STAND_INS = {
    "pip install -e FOLDER": "the folder and its entry points are put on this process's path",
    "python -m pytest FOLDER": "the folder's tests are called in this process",
    "python -c TEXT": "the text is executed in this process",
    "titer ...": "the command is called in this process, on small configs",
    "titer board A B": "also: as they are written they draw alike and mean the same by a label",
    "make TARGET": "the target is looked up in the Makefile",
    "pip install .": "the extras are looked up in pyproject.toml",
}
# Commands that only CI, or another machine, runs: a pattern and who does.
ELSEWHERE: dict[str, str] = {
    r"ray (start|stop|status|get-auth-token)( .*)?": "who runs a cluster; tests/runner/test_ray.py starts Ray",
    r"export( [A-Z_]+=\S*)+": "nobody: it sets variables of the shell",
    r"cat [\w./-]+": "nobody: it shows a file",
    r"cd [\w./-]+": "nobody: the reader is there already",
}
# Blocks that nobody can run.
SHOWN = {"text": "formulas, and what a command prints"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its title and its text."""

    place: str
    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    fence = re.compile(r"^( *)(`{3,}|~{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
    text = page.read_text()
    for found in fence.finditer(text):
        words = found[3].strip()
        title = re.search(r'title="([^"]+)"', words)
        place = f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}"
        language = re.match(r"\w*", words)
        assert language is not None
        yield Block(place, language[0], title[1] if title else "", textwrap.dedent(found[4]))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"(^|\s)#.*", "", line))  # a # inside a word is no comment, as in a cell's name
        if words:
            yield words


def small(values: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """A config that runs in seconds, with the same names and labels."""
    made = {**values, **SMALL, "model": str(model), "budgets": [min(b, MOST) for b in values.get("budgets", [])][-1:]}
    made.pop("adaptation")
    kept = KEPT.get(str(values["name"]))
    for kind, plural in registry.FOLDERS.items():
        chosen = [e for e in values[plural] if kind == "metric" or kept is None or label(e) in kept]
        made[plural] = [smaller(kind, item, kept) for item in chosen]
    made["metrics"] = made["metrics"][:METRICS]
    if kept is not None:
        claims = values.get("claims", [])
        made["claims"] = [
            c for c in claims if {c["defense"], c.get("against", "none"), c.get("attack", "none")} <= kept
        ]
    if values.get("adaptation"):
        teacher = smaller("attack", values["adaptation"]["attack"])
        made["adaptation"] = {**values["adaptation"], "attack": teacher, "budget": 1}
    return made


def smaller(kind: registry.PluginKind, item: Any, kept: set[str] | None = None) -> Any:
    """An entry with few steps, against defenses that are `kept`.

    What is combined by name alone is made of entries that are small already.
    """
    given = {"use": item} if isinstance(item, str) else {k: v for k, v in item.items() if k != "at"}
    if given["use"] == imported.USE:
        return given
    if kept is not None and "against" in given:
        given["against"] = [defense for defense in given["against"] if defense in kept]
    if set("+>") & set(given["use"]):
        return item
    known = fields_of(kind, given["use"].removeprefix(SEARCH)) - set(given.get("grid", {}))
    if kind == "metric":
        judges = {n: v for n, v in conformance.ON_MINI.items() if not str(given.get(n, "")).startswith("mini")}
        return given | {name: value for name, value in {**judges, "pretrained": ""}.items() if name in known}
    return given | {name: value for name, value in conformance.SMALL.items() if name in known}


def fields_of(kind: registry.PluginKind, name: str) -> set[str]:
    """The fields of a plug-in."""
    return set(getattr(registry.find(kind, name), "__dataclass_fields__", {}))


def label(entry: Any) -> str:
    """The name of an entry on the board."""
    if isinstance(entry, str):
        return entry
    composed = f"{entry['after']}+{entry['use']}" if "after" in entry else entry["use"]
    return str(entry.get("as", composed))
