"""What `titer list`, `titer show` and `titer doctor` say: plug-ins, concepts, models, presets, this installation."""

import ast
import dataclasses
import importlib
import inspect
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from benchmark.config import config, imported, registry
from benchmark.data import cards as data
from benchmark.data.sets import SETS
from benchmark.errors import ConfigError, TiterError, shown, unknown
from benchmark.mini import PIPELINES
from benchmark.model import bases

KINDS: dict[str, registry.PluginKind] = {"defenses": "defense", "attacks": "attack", "metrics": "metric"}
PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "open_clip_torch",
    "pandas",
    "numpy",
    "pydantic",
)
EMOJI = "64 px emoji, 24 objects x 4 styles x 4 backgrounds"
EMBEDDED = {
    "mini": f"embedded: {EMOJI}; a U-Net that predicts noise",
    "mini-flow": f"embedded: {EMOJI}; a transformer that predicts velocities",
}


def listing(what: str) -> list[dict[str, str]]:
    """Name and one line of everything of a kind; a plug-in that cannot be imported is listed with the reason."""
    if what in KINDS:
        found = [{"name": name, "summary": summary(KINDS[what], name)} for name in registry.names(KINDS[what])]
        more = {"name": imported.USE, "summary": documentation(imported.Imported).split("\n")[0]}
        return [*found, more] if what == "defenses" else found
    if what == "concepts":
        cards = [data.load_concept(name) for name in data.cards()]
        return [
            {"name": name, "summary": f"{c.kind}, {len(c.of('concept'))} prompts"}
            for name, c in zip(data.cards(), cards, strict=True)
        ]
    if what == "sets":
        return [{"name": name, "summary": found.summary} for name, found in SETS.items()]
    if what == "models":
        places = {name: place for name, place in bases.PRESETS.items() if name not in PIPELINES} | EMBEDDED
        return [{"name": name, "summary": summary} for name, summary in places.items()]
    if what == "presets":
        return [{"name": name, "summary": preset_summary(name)} for name in config.presets()]
    raise ConfigError(unknown("listing", what, [*KINDS, "concepts", "sets", "models", "presets"]))


def summary(kind: registry.PluginKind, name: str) -> str:
    """The first line of a plug-in's documentation; a built-in one is read, not imported, which would load torch."""
    if name in registry.builtin(kind):
        return (ast.get_docstring(ast.parse(registry.source(kind, name).read_text())) or "").split("\n")[0]
    try:
        return documentation(registry.find(kind, name)).split("\n")[0]
    except TiterError as error:
        return f"cannot be imported: {error}"


def documentation(cls: type[Any]) -> str:
    """The text at the top of a plug-in's file."""
    return inspect.cleandoc(importlib.import_module(cls.__module__).__doc__ or cls.__doc__ or "")


def preset_summary(name: str) -> str:
    """What a preset crosses."""
    values = yaml.safe_load((config.PRESETS / f"{name}.yaml").read_text())
    counts = {what: len(values[what]) for what in ("concepts", "defenses", "attacks")}
    return f"{values['model']}: " + " x ".join(f"{count} {what}" for what, count in counts.items())


def details(name: str) -> dict[str, Any]:
    """All that is known under a name: plug-ins of every kind, a concept, a preset; or what a card in a file says."""
    found: dict[str, Any] = {}
    for kind in KINDS.values():
        if name in registry.names(kind):
            found |= {f"{kind} {key}": value for key, value in plugin(kind, name).items()}
    if is_card(name):
        return {"concept": data.describe(data.load_concept(name))}
    if name in data.cards():
        found["concept"] = data.describe(data.load_concept(name))
    if name == imported.USE:
        found["defense documentation"] = documentation(imported.Imported)
    if name in config.presets():
        found["preset"] = (config.PRESETS / f"{name}.yaml").read_text()
    if not found:
        known = [n for kind in KINDS.values() for n in registry.names(kind)]
        raise ConfigError(unknown("name", name, [*known, *data.cards(), *config.presets()]))
    return found


def is_card(name: str) -> bool:
    """Whether a name is that of a file with a card."""
    return name.endswith((".yaml", ".yml")) and Path(name).expanduser().is_file()


def plugin(kind: registry.PluginKind, name: str) -> dict[str, Any]:
    """A plug-in's documentation, defaults, presets and, for a defense, its fidelity."""
    cls = registry.find(kind, name)
    fields = {f.name: default(f) for f in dataclasses.fields(cls)}
    facts = {"documentation": documentation(cls), "version": str(cls.version), "fields": fields}
    facts |= {"presets": {k: dict(v) for k, v in getattr(cls, "presets", {}).items()}}
    if kind == "defense":
        needs = ", ".join(sorted(cls.needs)) or "none (prompts only)"
        facts |= {"fidelity": f"{cls.fidelity}: {cls.matched}", "data it needs": needs}
    return facts


def default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as a JSON value."""
    return (
        "required" if field.default is dataclasses.MISSING else TypeAdapter(Any).dump_python(field.default, mode="json")
    )


def checks() -> list[dict[str, Any]]:
    """What `titer doctor` looks at: name, ok, and what was found."""
    found = [check("python >= 3.11", platform.python_version)]
    found += [check(name, partial(version, name)) for name in PACKAGES]
    found += [check("device", device)]
    found += [check(f"model {name}", partial(fingerprint_of, name)) for name in PIPELINES]
    found.append(check("concept cards", lambda: f"{len([data.load_concept(n) for n in data.cards()])} read"))
    for kind in KINDS.values():
        found += [check(f"{kind} {name}", partial(class_name, kind, name)) for name in registry.names(kind)]
    return found


def fingerprint_of(name: str) -> str:
    """The hash of the weights of a model that is here."""
    return bases.fingerprint(bases.locate(name))


def mini_checks(name: str, grid: Path | None) -> list[dict[str, Any]]:
    """An embedded model against its bar: the second opinion on 256 prompts with fresh seeds, and the time for 64.

    Raises:
        ConfigError: no embedded model is called so.
    """
    from benchmark.mini.recipe.measure import BAR, measure

    if name not in PIPELINES:
        raise ConfigError(f"expected an embedded model with --mini, got {shown(name)}: {', '.join(PIPELINES)}.")
    found = measure(lambda *, step, total, loss: None, base=name, grid=grid)
    return [
        {
            "name": f"{name}, bar {bar}",
            "ok": found[name] <= bar if "seconds" in name else found[name] >= bar,
            "found": found[name],
        }
        for name, bar in BAR.items()
    ]


def class_name(kind: registry.PluginKind, name: str) -> str:
    """The class of a plug-in."""
    return registry.find(kind, name).__name__


def check(name: str, look: Callable[[], str]) -> dict[str, Any]:
    """One line of the doctor's list."""
    try:
        return {"name": name, "ok": True, "found": look()}
    except (TiterError, PackageNotFoundError, ImportError) as error:
        return {"name": name, "ok": False, "found": str(error)}


def device() -> str:
    """The accelerator that a run would use."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
