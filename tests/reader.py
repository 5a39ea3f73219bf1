"""Somebody who types a page of the documentation from the top; `tests.pages` declares what stands in for what."""

import csv
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.config import config, registry
from benchmark.data import cards as data
from benchmark.model import load
from benchmark.runner.trackers import TRACKERS
from benchmark.session import planned
from metrics.judges import GROUP
from tests import pipelines, releases
from tests.pages import ELSEWHERE, GIVEN, PROJECT, ROOT, SHOWN, TARGETS, WORDS, Block, blocks, commands, small


def preset(name: str) -> config.Config | None:
    """A shipped preset as it is written."""
    file = ROOT / "benchmark" / "config" / "presets" / f"{name}.yaml"
    return config.parse(yaml.safe_load(file.read_text())) if file.is_file() else None


def refuse_unlike(configs: list[config.Config]) -> None:
    """Raise AssertionError unless configs draw alike, and mean the same by a label."""
    drawn = {repr((found.raw.sampling, found.raw.prompts, found.raw.images)) for found in configs}
    assert len(drawn) <= 1, f"expected configs that draw alike, got {' and '.join(sorted(drawn))}"
    meant: dict[tuple[str, str], dict[str, Any]] = {}
    for found in configs:
        for kind in registry.FOLDERS.values():
            for entry in getattr(found, kind):
                known = meant.setdefault((kind, entry.label), entry.fields)
                assert known == entry.fields, f"expected one meaning of {entry.label}, got {known} and {entry.fields}"


class Reader:
    """Somebody who types a page from the top, in an empty folder that is the working directory."""

    def __init__(self, model: Path, folder: Path, path: Callable[[str], None]) -> None:
        self.model, self.folder, self.path = model, folder, path
        self.written: dict[str, config.Config] = {}
        self.module = types.ModuleType("titer_page")
        sys.modules["titer_page"] = self.module
        self.before = set(sys.modules)

    def given(self, page: Path) -> None:
        """Put down the files that a page takes for granted."""
        for name, (other, title) in GIVEN.get(page.name, {}).items():
            block = next(block for block in blocks(ROOT / other) if block.title == title)
            self.follow(replace(block, title=name))

    def leave(self) -> None:
        """Forget what the page made."""
        for name in set(sys.modules) - self.before | {"titer_page"}:
            if name == "titer_page" or self.is_own(sys.modules[name]):
                del sys.modules[name]

    def is_own(self, module: Any) -> bool:
        """Whether a module lies in the reader's folder."""
        return str(getattr(module, "__file__", None) or "").startswith(str(self.folder))

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        does: dict[str, Callable[[Block], None]] = {
            "sh": self.shell,
            "python": self.python,
            "yaml": self.yaml,
            "toml": self.toml,
            "csv": self.csv,
            "console": self.console,
            "bash": self.script,
        }
        if block.language in SHOWN:
            return
        if block.language not in does:
            raise AssertionError(f"{block.place}: nobody knows how to run a block of {block.language!r}")
        try:
            does[block.language](block)
        except AssertionError as error:
            raise AssertionError(f"{block.place}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{block.place}: {error!r}") from error

    def write(self, block: Block, text: str) -> None:
        """Keep a titled block as the file that its title names."""
        file = self.folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    # YAML: a config, a part of one, a concept card.

    def yaml(self, block: Block) -> None:
        """Check the values as titer does; a titled config is written small, a titled card as it is."""
        values = yaml.safe_load(block.text)
        assert isinstance(values, dict), "expected a mapping"
        if "phrase" in values:
            card = replace(block, title=block.title or "card.yaml")
            self.write(card, card.text)
            data.load_concept(str(self.folder / card.title))
            return
        assert set(values) & set(config.Raw.model_fields), "expected a config or a concept card"
        is_whole = set(values) >= {"name", "model", "concepts", "defenses", "attacks", "metrics"}
        smoke = yaml.safe_load((ROOT / "benchmark" / "config" / "presets" / "smoke.yaml").read_text())
        named = {item["at"] for item in values.get("attacks", []) if isinstance(item, dict) and "at" in item}
        part = smoke | {"budgets": sorted({*smoke["budgets"], *named})} | values  # what a part does not say is smoke's
        for kind, names in (("defenses", ("defense", "against")), ("attacks", ("attack",))):
            claimed = [claim[name] for claim in values.get("claims", []) for name in names if claim.get(name)]
            have = {item if isinstance(item, str) else item.get("as", item["use"]) for item in part[kind]}
            part[kind] = [*part[kind], *(name for name in dict.fromkeys(claimed) if name not in have)]
        planned(config.parse(values if is_whole else part), "base")
        if block.title:
            assert is_whole, "expected a whole config in a block with a title"
            self.written[block.title] = config.parse(values)
            self.write(block, yaml.safe_dump(small(values, self.model)))

    def csv(self, block: Block) -> None:
        """Keep a table for the blocks that follow."""
        assert block.title, "expected a title"
        assert len(set(map(len, csv.reader(block.text.splitlines())))) == 1, "expected rows of one length"
        self.write(block, block.text)

    def toml(self, block: Block) -> None:
        """Entry points of a plug-in: the group is one that titer reads."""
        points = tomllib.loads(block.text)["project"]["entry-points"]
        assert set(points) <= {GROUP, *(f"titer.{folder}" for folder in registry.FOLDERS.values())}, "expected a group"

    # Python: a file, or lines that are executed.

    def python(self, block: Block) -> None:
        """Write a titled block; execute another, with the names of those before it."""
        if block.title:
            compile(block.text, block.title, "exec")
            self.write(block, block.text)
            self.reload()
        else:
            exec(compile(block.text, block.place, "exec"), vars(self.module))

    def reload(self) -> None:
        """Forget modules of the reader's folder, which may have changed."""
        for name in [name for name, module in sys.modules.items() if self.is_own(module)]:
            del sys.modules[name]
        importlib.invalidate_caches()

    # The shell.

    def shell(self, block: Block) -> None:
        """Run each command of a block."""
        for words in commands(block.text):
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # of the command's environment
                words = words[1:]
            line = " ".join(words)
            if not any(re.fullmatch(pattern, line) for pattern in ELSEWHERE):
                self.command(words, line)

    def console(self, block: Block) -> None:
        """Run what stands behind a prompt, which ends in `$`; the other lines are what it prints."""
        typed = re.findall(r"^[\w-]*\$ +(.*)$", block.text, re.MULTILINE)
        assert typed, "expected lines that begin with $"
        self.shell(replace(block, text="\n".join(typed)))

    def script(self, block: Block) -> None:
        """Let bash read a script; run the `titer` in it, whose variables are names of folders."""
        read = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert read.returncode == 0, read.stderr
        lines = [line.strip() for line in block.text.replace("\\\n", " ").splitlines()]
        called = [line.replace('"$config"', "CONFIG").replace("$", "") for line in lines if " titer " in f" {line}"]
        called = [line[line.index("titer ") :] for line in called if not line.startswith("#")]
        assert called, "expected a script that calls titer"
        self.shell(replace(block, text="\n".join(called)))

    def command(self, words: list[str], line: str) -> None:
        """Run one command, or what stands in for it."""
        match words:
            case ["titer", *rest]:
                self.titer(rest)
            case ["make", *targets]:
                assert set(targets) <= TARGETS, f"expected targets of the Makefile, got {line}"
            case ["pip", "install", "-e", where] if not where.startswith("."):
                self.install(self.folder / where.partition("[")[0])
            case ["pip", "install", *where]:
                self.extras([word for word in where if word not in ("-c", "constraints.txt")], line)
            case ["python", "-m", "pytest", *folders]:
                for folder in folders or ["."]:
                    self.test(self.folder / folder)
            case ["python", "-c", text]:
                exec(compile(text, line, "exec"), vars(self.module))
            case _:
                raise AssertionError(f"nobody knows how to run {line!r}")

    def titer(self, words: list[str]) -> None:
        """Call the command; a `>` at the end keeps what it prints."""
        if words[0] == "board":
            refuse_unlike([how for word in words[1:] if (how := self.written.get(word) or preset(word))])
        if words[0] == "import":
            words = self.released(words)
        words, target = (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, "")
        result = CliRunner().invoke(app, self.replaced(words))
        assert result.exit_code == 0, f"titer {' '.join(words)} ended with {result.exit_code}: {result.output}"
        if target:
            (self.folder / target).write_text(result.stdout)

    def released(self, words: list[str]) -> list[str]:
        """The words of an import on a tiny base of the family, whose checkpoint is made if it is not there."""
        source, at = self.folder / words[1], words.index("--base") + 1
        base = self.model
        if "FLUX" in words[at]:
            base = self.folder / "flux"
            base = base if base.exists() else pipelines.write("schnell", base)
        if not source.exists():
            source.parent.mkdir(parents=True, exist_ok=True)
            releases.RELEASES[words[1]](load(base), source, base)
        return [*words[:at], str(base), *words[at + 1 :]]

    def replaced(self, words: list[str]) -> list[str]:
        """The words of a command after `OPTIONS` and `WORDS`."""
        words = [WORDS.get(word, word) for word in words]
        for at in range(len(words) - 1, -1, -1):
            match words[at : at + 2]:
                case ["--executor" | "--workers", _]:
                    words[at : at + 2] = ["--dry-run"]
                case ["--track", name]:
                    assert name in TRACKERS, f"expected one of {', '.join(TRACKERS)}, got {name}"
                    words[at : at + 2] = []
                case ["--model" | "--device" as option, _]:
                    words[at + 1] = str(self.model) if option == "--model" else "cpu"
        return words

    def extras(self, where: list[str], line: str) -> None:
        """This project, with extras that it has."""
        targets = [word for word in where if not word.startswith("-")]
        found = [re.fullmatch(r"(?:\.|titer)(?:\[([\w,-]+)\])?", target) for target in targets]
        assert targets and all(found), f"expected this project, got {line}"
        wanted = {extra for match in found if match and match[1] for extra in match[1].split(",")}
        assert wanted <= set(PROJECT["optional-dependencies"]), f"expected extras of pyproject.toml, got {line}"

    def install(self, folder: Path) -> None:
        """What pip would write for the entry points of a folder's pyproject.toml."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        groups = project["entry-points"].items()
        text = "".join(f"[{group}]\n" + "".join(f"{n} = {p}\n" for n, p in points.items()) for group, points in groups)
        (info / "entry_points.txt").write_text(text)
        self.path(str(folder))
        importlib.invalidate_caches()

    def test(self, folder: Path) -> None:
        """Call the tests of a folder; they take no fixtures."""
        self.reload()
        files = sorted(folder.glob("test_*.py"))
        assert files, f"expected tests in {folder.name}"
        for file in files:
            module = importlib.import_module(file.stem)
            tests = [item for name, item in vars(module).items() if name.startswith("test_")]
            assert tests, f"expected tests in {file.name}"
            for test in tests:
                test()
