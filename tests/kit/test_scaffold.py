"""What a third party uses: `titer new`, the conformance checks, the example, `benchmark.run`, the schema."""

import dataclasses
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from torch import Generator
from typer.testing import CliRunner

import benchmark
from benchmark.cli import app
from benchmark.config import config, entries, own_classes, registry
from benchmark.diffusion import Model
from benchmark.errors import ConfigError, PluginError
from benchmark.kit import conformance, scaffold
from benchmark.model import bases
from benchmark.types import Concept, Delta, Examples, Report
from defenses.base import Defense
from defenses.esd import ESD
from tests.runs import tiny_config, write_config

runner = CliRunner()
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "weight_noise"
Install = Callable[[Path], dict[str, types.ModuleType]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift(Defense):
    """Adds a number to one bias."""

    by: float = 0.1

    version = 1
    fidelity = "reconstructed"
    matched = "nothing"

    def protect(
        self, model: Model, concept: Concept, data: Mapping[str, Examples], *, rng: Generator, report: Report
    ) -> Delta:
        """The same shift for every concept; a negative one fails."""
        if self.by < 0:
            raise ValueError("expected a shift above 0")
        report(step=1, total=1, loss=0.0)
        return Delta(dense={"unet.conv_out.bias": torch.full_like(model.unet.conv_out.bias, self.by)})


def put_on_path(folder: Path) -> None:
    """What pip would write for the entry points of a folder's pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    text = "".join(f"[{group}]\n" + "".join(f"{n} = {p}\n" for n, p in points.items()) for group, points in groups)
    (info / "entry_points.txt").write_text(text)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a folder for one test; answers its modules by name."""
    before = set(sys.modules)

    def install(folder: Path) -> dict[str, types.ModuleType]:
        put_on_path(folder)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        return {file.stem: importlib.import_module(file.stem) for file in folder.glob("*.py")}

    yield install
    for name in set(sys.modules) - before:
        if "titer_kit" in name or "weight_noise" in name:
            del sys.modules[name]


def claims_of(modules: dict[str, types.ModuleType]) -> list[Callable[[], None]]:
    found = [(n, f) for m in modules.values() for n, f in vars(m).items() if n.startswith("test_")]
    return [f for _, f in found]


def one_line(*words: str) -> str:
    """The refusal of a command: exit code 2 and one line."""
    result = runner.invoke(app, list(words))
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize(
    ("kind", "style"), [("defense", ""), ("metric", ""), *(("attack", style) for style in ("", *scaffold.STYLES[1:]))]
)
def test_a_new_plugin_installs_passes_its_test_and_is_listed(
    kind: str, style: str, tmp_path: Path, install: Install
) -> None:
    name, folder = f"titer_kit_{style}{kind}", tmp_path / "made" / "here"

    result = runner.invoke(app, ["new", kind, name, "--to", str(folder), *(["--kind", style] if style else [])])

    assert result.exit_code == 0, result.output
    assert {f.name for f in folder.iterdir()} == {f"{name}.py", f"test_{name}.py", "pyproject.toml", "README.md"}
    tests = claims_of(install(folder))
    assert len(tests) == 2
    for test in tests:
        test()
    listed = json.loads(runner.invoke(app, ["list", f"{kind}s", "--json"]).stdout)
    summary = next(row["summary"] for row in listed if row["name"] == name)
    assert summary.startswith(f"{name}: what it ")


def test_new_plugins_are_clean(tmp_path: Path) -> None:
    for kind in registry.FOLDERS:
        scaffold.write(kind, f"titer_kit_{kind}", tmp_path / kind)
    for style in scaffold.STYLES[1:]:
        scaffold.write("attack", f"titer_kit_{style}", tmp_path / "attack" / style, style)
    rules = ["--isolated", "--line-length", "120"]

    check, form = ["check", "--select", "E,F,W,UP,B,D1"], ["format", "--check"]
    for kind in registry.FOLDERS:
        for words in (check, form):
            command = [sys.executable, "-m", "ruff", *words, *rules, "."]
            done = subprocess.run(command, cwd=tmp_path / kind, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("defence", "mine", "did you mean 'defense'"),
        ("defense", "esd", "a name that defenses have already"),
        ("attack", "lora", "a name that attacks have already"),
        ("defense", "class", "lower-case Python name"),
        ("defense", "9lives", "lower-case Python name"),
        ("defense", "a-b", "lower-case Python name"),
        ("defense", "../up", "lower-case Python name"),
        ("defense", "torch", "is an installed module"),
        ("metric", "random", "is an installed module"),
    ],
)
def test_a_bad_name_is_refused(kind: str, name: str, message: str, tmp_path: Path) -> None:
    assert message in one_line("new", kind, name, "--to", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")

    assert "expected a new folder" in one_line("new", "defense", "titer_kit_a", "--to", str(tmp_path))
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_class_name_that_the_file_uses_already_gets_its_kind(tmp_path: Path) -> None:
    files = scaffold.write("defense", "delta", tmp_path / "x")

    assert "class DeltaDefense(Defense)" in files[0].read_text()


def broken(folder: Path, name: str, text: str, target: str) -> None:
    """A package whose entry point leads nowhere good."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    points = (
        f'[project]\nname = "{name}"\nversion = "1"\n[project.entry-points."titer.defenses"]\n{name} = "{target}"\n'
    )
    (folder / "pyproject.toml").write_text(points)
    put_on_path(folder)


def test_broken_plugins_are_listed_with_their_error_and_stop_nobody_else(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "titer_kit_syntax": ("def (", "invalid syntax"),
        "titer_kit_lacks": ("import no_such_module", "no_such_module"),
        "titer_kit_raises": ("1 / 0", "division by zero"),
        "titer_kit_empty": ("", "no attribute 'Mine'"),
        "titer_kit_other": ("class Mine: pass", "derives from Defense"),
    }
    for name, (text, _) in texts.items():
        broken(tmp_path / name, name, text, f"{name}:Mine")
        monkeypatch.syspath_prepend(tmp_path / name)

    listed = json.loads(runner.invoke(app, ["list", "defenses", "--json"]).stdout)
    summaries = {row["name"]: row["summary"] for row in listed}
    for name, (_, error) in texts.items():
        assert summaries[name].startswith("cannot be imported: ")
        assert error in summaries[name]
        with pytest.raises(PluginError):
            config.parse({**tiny_config(tmp_path, tiny_folder), "defenses": ["none", name]})
    assert summaries["esd"].startswith("ESD")
    assert runner.invoke(app, ["plan", str(write_config(tmp_path, tiny_folder))]).exit_code == 0
    assert any("titer_kit_syntax" in str(item) for item in config.schema()["properties"]["defenses"]["items"]["anyOf"])


@pytest.mark.parametrize("words", [("attack", "--kind", "worse"), ("defense", "--kind", "prompt")])
def test_an_unknown_style_stops_with_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    kind, *options = words
    result = runner.invoke(app, ["new", kind, "titer_kit_style", "--to", str(tmp_path / "x"), *options])

    assert result.exit_code == 2 and not (tmp_path / "x").exists()


def test_an_attack_that_does_not_say_what_it_changes_is_refused(tmp_path: Path, install: Install) -> None:
    """By the conformance suite, and by a plan in one line."""
    folder = tmp_path / "made"
    (file, *_) = scaffold.write("attack", "titer_kit_silent", folder, "reword")
    lines = [line for line in file.read_text().splitlines(keepends=True) if not line.startswith("    changes =")]
    file.write_text("".join(lines))
    cls = next(iter(install(folder).values())).TiterKitSilent
    with pytest.raises(PluginError, match=r"expected changes in TiterKitSilent.*docs/add-a-defense"):
        conformance.check_attack(cls)
    with pytest.raises(PluginError, match="expected changes in TiterKitSilent, the attack 'titer_kit_silent'"):
        registry.find("attack", "titer_kit_silent")


def changed(tmp_path: Path, kind: str, old: str, new: str) -> Any:
    """The class of a new plug-in, edited."""
    name = f"titer_kit_{abs(hash((kind, old, new)))}"
    file = scaffold.write(kind, name, tmp_path / name)[0]
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return registry.public_class(module, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("defense", "@dataclass(frozen=True, kw_only=True)\n", "", "got a class without it"),
        ("defense", ", kw_only=True", "", "keyword-only"),
        ("defense", "    version = 1", "", "expected version in"),
        ("defense", "Protects  ", "", "the lines"),
        ("defense", "what it does", "cuda", "leaves printing"),
        ("defense", "presets = {}", 'presets = {"fast": {"stepz": 1}}', "stepz"),
        ("defense", "model.clone()", "model", "zero in a control or a guard only"),
        ("defense", "difference(edited, model, names=names)", "Delta()", "zero in a control or a guard only"),
        (
            "defense",
            "normal((self.batch, *model.latent_shape), rng, like=c)",
            "torch.randn(self.batch, *model.latent_shape)",
            "global",
        ),
        (
            "defense",
            "= model.clone()",
            "= model; model.vae.decoder.conv_out.bias.data.add_(1); edited = model.clone()",
            "the model to stay",
        ),
        ("attack", "yield Snapshot(steps=step,", "yield Snapshot(steps=step + 1,", "a snapshot at each"),
        ("attack", "difference(attacked, model)", "difference(model, model)", "weights or words that changed"),
        ("attack", "lr=self.lr,", "lr=self.lr / max(budgets) * len(budgets),", "same last snapshot"),
        ("attack", "report=report,", "report=lambda **_: None,", "one report for each step"),
        ("metric", "images.flatten(1).mean(1)", "images.flatten(1).mean(1) / len(images)", "together as alone"),
        ("metric", "images.flatten(1).mean(1)", "images.flatten(1).sum(1)", "numbers from 0.0 to 1.0"),
        ("metric", "images.flatten(1).mean(1)", "images.flatten(2).mean(2)", "3 numbers"),
    ],
)
def test_the_checks_find_a_broken_contract(kind: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    cls = changed(tmp_path, kind, old, new)
    check = {"defense": conformance.check_defense, "attack": conformance.check_attack}.get(
        kind, conformance.check_metric
    )

    with pytest.raises(PluginError, match=message):
        check(cls)
    del sys.modules[cls.__module__]


def test_a_prompt_and_a_sampling_attack_are_checked_too() -> None:
    for name in ("random_prefix", "img2img", "paraphrase", "none"):
        conformance.check_attack(registry.find("attack", name))


def test_the_example_passes_its_tests_and_its_config_is_valid(tmp_path: Path, install: Install) -> None:
    folder = tmp_path / "weight_noise"
    folder.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())

    tests = claims_of(install(folder))
    assert len(tests) == 3
    for test in tests:
        test()
    loaded = config.load(str(folder / "smoke.yaml"))
    assert [e.label for e in loaded.defenses] == ["none", "weight_noise", "loud"]
    jsonschema.validate(yaml.safe_load((folder / "smoke.yaml").read_text()), config.schema())


def test_own_classes_run_beside_those_of_the_config(
    tiny_folder: Path, tiny_run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """And a second call computes nothing; a mapping names two of one class."""
    where: dict[str, Any] = {"out": tmp_path / "out", "store": tmp_path / "store", "device": "cpu"}
    values = tiny_config(tmp_path, tiny_folder, attacks=["none"])
    shutil.copytree(tiny_run / "store", tmp_path / "store")
    given = json.loads(json.dumps(values))
    methods = {"weak": Shift(by=0.01), "strong": Shift(by=0.5)}

    board = benchmark.run(values, defenses=methods, **where)

    assert set(board.defense) == {"none", "esd", "weak", "strong"}
    assert board.set_index("defense").fidelity["weak"] == "reconstructed"
    assert (tmp_path / "out" / "leaderboard.csv").is_file()
    assert values == given
    kept = {file.name for file in (tmp_path / "store").glob("defend/*")}
    assert sum(own_classes.fingerprint(Shift) in name for name in kept) == 2
    monkeypatch.setattr(bases, "load", None)
    again = benchmark.run(write_config(tmp_path, tiny_folder, attacks=["none"]), defenses=methods, **where)
    assert board.equals(again)


def test_a_failing_own_class_is_a_warning_and_stops_nobody_else(tiny_folder: Path, tmp_path: Path) -> None:
    values = tiny_config(tmp_path, tiny_folder, defenses=["none"], attacks=["none"])
    where: dict[str, Any] = {"out": tmp_path / "out", "store": tmp_path / "store", "device": "cpu"}

    with pytest.warns(UserWarning, match="failed: .*Shift.*expected a shift above 0"):
        board = benchmark.run(values, defenses=[Shift(by=-1)], **where)

    assert board.set_index("defense").status["Shift"] != "ok"
    assert board.set_index("defense").presence_before.notna()["none"]


class Loose:
    """No plug-in."""


def test_what_is_no_method_is_one_line() -> None:
    class Lacking(Defense):
        version = 1
        protect = Shift.protect

    lacking = dataclasses.dataclass(frozen=True, kw_only=True)(Lacking)
    thawed = type("Thawed", (Shift,), {})
    for wrong, message in (
        (Shift, "write it with"),
        (Loose(), "expected a defense, got a Loose: derive it from defenses.base.Defense"),
        (lacking(), "expected fidelity, matched in Lacking"),
        (thawed(), "expected a frozen Thawed"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            list(own_classes.items("defense", [wrong]))
        assert "\n" not in str(caught.value)


def test_a_built_in_class_keeps_its_name_and_key() -> None:
    (item,) = own_classes.items("defense", [ESD(steps=7)])

    assert item["use"] == "esd"
    assert item["as"] == "ESD"
    assert {key: value for key, value in item.items() if key not in ("use", "as")} == entries.entry(
        "defense", {"use": "esd", "steps": 7}
    ).fields


def test_an_installed_name_cannot_be_registered() -> None:
    with pytest.raises(ConfigError, match="choose another"):
        registry.register("defense", "esd", Shift)


CELL = """
import dataclasses, functools
LIMIT = 3
WORDS = {"b", "a", "c"}
def helper(x):
    return x + 1
def wrap(f):
    @functools.wraps(f)
    def g(*a):
        return f(*a)
    return g
class Base:
    def inherited(self):
        return 5
@dataclasses.dataclass(frozen=True)
class Mine(Base):
    x: int = 2
    version = 1
    def go(self):
        return [helper(i) for i in range(LIMIT) if i in {7, 8} or str(i) in WORDS]
    @wrap
    def wrapped(self):
        return 11
    @property
    def size(self):
        return 13
"""


def hash_of(text: str) -> str:
    module = types.ModuleType("titer_kit_cell")
    sys.modules["titer_kit_cell"] = module
    exec(compile(text, "<cell>", "exec"), module.__dict__)
    return own_classes.fingerprint(module.Mine)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("x + 1", "x + 2"),
        ('"c"}', '"d"}'),
        ("return 5", "return 6"),
        ("x: int = 2", "x: int = 3"),
        ("x: int", "x: float"),
        ("version = 1", "version = 2"),
        ("{7, 8}", "{7, 9}"),
        ("return 11", "return 12"),
        ("return 13", "return 14"),
        ("g(*a)", "g(*a, **k)"),
    ],
)
def test_an_edited_class_has_another_key(old: str, new: str) -> None:
    assert old in CELL
    assert hash_of(CELL) != hash_of(CELL.replace(old, new, 1))


def test_a_comment_or_another_process_changes_no_key(tmp_path: Path) -> None:
    (tmp_path / "titer_kit_cell.py").write_text(f"\n\n# moved\n{CELL}")
    code = "import titer_kit_cell as m; from benchmark.config.own_classes import fingerprint as f; import sys; "
    code += "assert 'torch' not in sys.modules; sys.stdout.write(f(m.Mine))"

    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert found == {hash_of(CELL)}


def test_every_preset_fits_the_schema_and_a_typo_does_not() -> None:
    result = runner.invoke(app, ["schema"])
    schema = json.loads(result.stdout)

    check = jsonschema.Draft202012Validator
    check.check_schema(schema)
    for name in config.presets():
        values = json.loads(json.dumps(config.read(name)))
        check(schema).validate(values)
        assert not check(schema).is_valid(values | {"defences": []})
        assert not check(schema).is_valid(values | {"defenses": [{"use": "esd", "stepz": 3}]})
        assert not check(schema).is_valid(values | {"defenses": [{"use": "esd", "steps": "many"}]})
        assert check(schema).is_valid(values | {"defenses": ["esd+imma", {"use": "esd", "as": "x", "steps": 3}]})


def test_the_kit_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, benchmark; from benchmark.kit import scaffold; "
        f"scaffold.write('defense', 'titer_kit_b', pathlib.Path({str(tmp_path / 'b')!r})); "
        "assert 'torch' not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shell_can_complete() -> None:
    assert "--install-completion" in runner.invoke(app, ["--help"]).stdout


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)


def test_a_script_may_name_an_executor(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown executor 'rai': did you mean 'ray'"):
        benchmark.run(write_config(tmp_path, tiny_folder), executor="rai", out=tmp_path / "o", store=tmp_path / "s")

    assert not (tmp_path / "s").exists()
