"""YAML -> frozen Config. An unknown key or name is an error that says which was nearest.

name: demo
model: mini
sampling: {steps: 12, guidance: 4.0}
concepts: [cigarette]
budgets: [25, 50, 100]
defenses:
  - none
  - {use: esd, as: esd-x, preset: fast, lr: 1.0e-4}
attacks: [none, lora]
metrics: [clip_score, presence]
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from benchmark.errors import ConfigError, unknown
from benchmark.registry import PluginKind, find

PRESETS = Path(__file__).parent / "presets"


class Strict(BaseModel):
    """Frozen, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampling(Strict):
    """How every cell's images are drawn: DDIM steps and classifier-free guidance."""

    steps: int = Field(50, ge=1, le=1000)
    guidance: float = Field(7.5, ge=1.0)


class Counts(Strict):
    """A number for each split: images a prompt, or prompts of the card (0: all of them)."""

    concept: int = Field(0, ge=0)
    retained: int = Field(0, ge=0)
    safe: int = Field(0, ge=0)
    attacker: int = Field(0, ge=0)
    defender: int = Field(0, ge=0)


class ImageCounts(Counts):
    """Images of each prompt, by split."""

    concept: int = Field(1, ge=1)
    retained: int = Field(1, ge=1)
    safe: int = Field(1, ge=1)
    attacker: int = Field(1, ge=1)
    defender: int = Field(1, ge=1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A plug-in as a config names it: `as` is its label on the board, `method` the instance."""

    label: str
    use: str
    method: Any

    @property
    def fields(self) -> dict[str, Any]:
        """The method's fields as JSON values."""
        values: dict[str, Any] = adapter(type(self.method)).dump_python(self.method, mode="json")
        return values


class Raw(Strict):
    """The file as written."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    model: str
    concepts: tuple[str, ...] = Field(min_length=1)
    defenses: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    attacks: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    metrics: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    sampling: Sampling = Sampling()  # type: ignore[call-arg]
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    budgets: tuple[int, ...] = ()
    images: ImageCounts = ImageCounts()  # type: ignore[call-arg]
    prompts: Counts = Counts()  # type: ignore[call-arg]
    draws: int = Field(1000, ge=100)


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked config: `raw` is the file, the entries are built methods."""

    raw: Raw
    defenses: tuple[Entry, ...]
    attacks: tuple[Entry, ...]
    metrics: tuple[Entry, ...]


def presets() -> list[str]:
    """The names of the configs that ship with titer."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load(source: str) -> Config:
    """Read a preset by name or a YAML file by path, and check every name, key and value.

    Raises:
        ConfigError: one line on what is wrong.
    """
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    if not path.is_file():
        raise ConfigError(f"expected a preset or a YAML file, got {source!r}. {unknown('preset', source, presets())}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected YAML in {path}, got {' '.join(str(error).split())}: mend the file.") from error
    return parse(values)


def parse(values: Any) -> Config:
    """Check the values of a config."""
    if not isinstance(values, dict):
        raise ConfigError(
            f"expected a mapping at the top of the config, got {type(values).__name__}: see `titer list presets`."
        )
    try:
        raw = Raw.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, list(Raw.model_fields))) from error
    if any(b < 1 for b in raw.budgets) or list(raw.budgets) != sorted(set(raw.budgets)):
        raise ConfigError(f"expected rising budgets above 0, got {list(raw.budgets)}: budget 0 is always included.")
    lists = {kind: entries(kind, getattr(raw, f"{kind}s")) for kind in ("defense", "attack", "metric")}
    return Config(raw, lists["defense"], lists["attack"], lists["metric"])


def restrict(config: Config, only: Mapping[str, tuple[str, ...]]) -> Config:
    """Keep the named concepts, defenses or attacks; the control stays, since every comparison needs it."""
    raw, parts = config.raw, {"defense": config.defenses, "attack": config.attacks}
    for what, wanted in only.items():
        known = list(raw.concepts) if what == "concept" else [e.label for e in parts.get(what, ())]
        if not known:
            raise ConfigError(unknown("--only key", what, ("concept", "defense", "attack")))
        for label in wanted:
            if label not in known:
                raise ConfigError(unknown(what, label, known))
        if what == "concept":
            raw = raw.model_copy(update={"concepts": tuple(c for c in raw.concepts if c in wanted)})
        else:
            parts[what] = tuple(e for e in parts[what] if e.label in wanted or e.use == "none")
    return dataclasses.replace(config, raw=raw, defenses=parts["defense"], attacks=parts["attack"])


def entries(kind: PluginKind, listed: tuple[str | dict[str, Any], ...]) -> tuple[Entry, ...]:
    """Build every listed plug-in; two with one label are an error."""
    built = tuple(entry(kind, item) for item in listed)
    labels = [e.label for e in built]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"expected different labels for {kind}s, got {label!r} twice: name one with `as:`.")
    return built


def entry(kind: PluginKind, item: str | dict[str, Any]) -> Entry:
    """One plug-in from `name` or `{use: name, as: label, preset: name, field: value}`."""
    given = {"use": item} if isinstance(item, str) else dict(item)
    if not isinstance(given.get("use"), str):
        raise ConfigError(f"expected `use: NAME` in every {kind}, got {item!r}: write {{use: NAME, ...}}.")
    use = given.pop("use")
    label, preset = str(given.pop("as", use)), given.pop("preset", None)
    cls = find(kind, use)
    known = [f.name for f in dataclasses.fields(cls)]
    stored = getattr(cls, "presets", {})
    if preset is not None and preset not in stored:
        raise ConfigError(unknown(f"preset of {kind} {use!r}:", str(preset), stored))
    for name in given:
        if name not in known:
            raise ConfigError(unknown(f"field of {kind} {use!r}:", name, known))
    try:
        method = adapter(cls).validate_python({**stored.get(preset, {}), **given})
    except ValidationError as error:
        raise ConfigError(f"{kind} {use!r}: {explain(error, known)}") from error
    return Entry(label, use, method)


def adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """Pydantic's validator for a method's dataclass."""
    return TypeAdapter(cls)


def explain(error: ValidationError, known: list[str]) -> str:
    """The first fault in one line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return unknown("key", place, known)
    return f"at {place!r}: {first['msg']}, got {first.get('input')!r}: change it."
