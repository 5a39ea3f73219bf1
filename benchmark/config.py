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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from benchmark.errors import ConfigError, PluginError, unknown
from benchmark.registry import FOLDERS, PluginKind, find, names
from benchmark.types import Precision

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
    prior: int = Field(0, ge=0)
    benign: int = Field(0, ge=0)


class ImageCounts(Counts):
    """Images of each prompt, by split."""

    concept: int = Field(1, ge=1)
    retained: int = Field(1, ge=1)
    safe: int = Field(1, ge=1)
    attacker: int = Field(1, ge=1)
    defender: int = Field(1, ge=1)
    prior: int = Field(1, ge=1)
    benign: int = Field(1, ge=1)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A plug-in as a config names it: `as` is its label on the board, `method` the instance.

    A composed defense is trained on the result of another, `after`. An attack may be meant for some defenses only,
    `against` (and the control); for all, if that is empty.
    """

    label: str
    use: str
    method: Any
    after: "Entry | None" = None
    against: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """The method's fields as JSON values."""
        values: dict[str, Any] = adapter(type(self.method)).dump_python(self.method, mode="json")
        return values


class Adapt(Strict):
    """How benign adaptation is measured: who teaches the defended model which innocent subject, and who judges."""

    subject: str
    attack: str | dict[str, Any]
    judge: str | dict[str, Any]
    budget: int = Field(100, ge=1)


class ClaimText(Strict):
    """A paper's claim and how a run checks it: the fields of `leaderboards.claims.Claim`."""

    claim: str
    defense: str
    statement: str
    source: str
    check: Literal["bound", "gap", "ratio"]
    number: str = "presence"
    against: str = ""
    attack: str = ""
    budget: int = 0
    at_most: float | None = None
    at_least: float | None = None
    below: bool = True


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
    precision: Precision = "float32"
    claims: tuple[ClaimText, ...] = ()
    adaptation: Adapt | None = None


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """`Adapt`, with its methods built."""

    subject: str
    attack: Entry
    judge: Entry
    budget: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked config: `raw` is the file, the entries are built methods."""

    raw: Raw
    defenses: tuple[Entry, ...]
    attacks: tuple[Entry, ...]
    metrics: tuple[Entry, ...]
    adaptation: Adaptation | None = None


def presets() -> list[str]:
    """The names of the configs that ship with titer."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def schema() -> dict[str, Any]:
    """The JSON Schema of a config file, with the name and fields of every plug-in that can be imported."""
    found = Raw.model_json_schema()
    for kind, plural in FOLDERS.items():
        use = {"anyOf": [{"enum": names(kind)}, {"type": "string"}]}  # also a+b, and what is installed elsewhere
        entry = {"type": "object", "properties": {"use": use}, "required": ["use"], "allOf": list(cases(kind))}
        found["properties"][plural]["items"] = {"anyOf": [*use["anyOf"], entry]}
    return found


def cases(kind: PluginKind) -> Iterator[dict[str, Any]]:
    """For each plug-in: if an entry uses it, then these are its keys."""
    word = {"type": "string"}
    more: dict[str, dict[str, Any]] = {
        "defense": {"after": word},
        "attack": {"against": {"anyOf": [word, {"type": "array", "items": word}]}},
    }
    for name in names(kind):
        try:
            fields = TypeAdapter(find(kind, name)).json_schema()
        except PluginError:
            continue
        presets = {"enum": sorted(getattr(find(kind, name), "presets", {}))}
        known = {"use": word, "as": word, "preset": presets, **more.get(kind, {}), **fields.get("properties", {})}
        yield {
            "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
            "then": {"properties": known, "additionalProperties": False},
        }


def load(source: str) -> Config:
    """Read a preset by name or a YAML file by path, and check every name, key and value.

    Raises:
        ConfigError: one line on what is wrong.
    """
    return parse(read(source))


def read(source: str) -> Any:
    """The values of a preset or a YAML file, not yet checked.

    Raises:
        ConfigError: there is no such file, or it is no YAML.
    """
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    if not path.is_file():
        raise ConfigError(f"expected a preset or a YAML file, got {source!r}. {unknown('preset', source, presets())}")
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected YAML in {path}, got {' '.join(str(error).split())}: mend the file.") from error


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
    check_claims(raw)
    lists = {kind: entries(kind, getattr(raw, f"{kind}s")) for kind in ("defense", "attack", "metric")}
    for label in (label for attack in lists["attack"] for label in attack.against):
        if label not in labels_of(lists["defense"]):
            raise ConfigError(unknown("defense in `against`:", label, labels_of(lists["defense"])))
    return Config(raw, lists["defense"], lists["attack"], lists["metric"], adaptation(raw.adaptation))


def labels_of(listed: tuple[Entry, ...]) -> list[str]:
    """The labels of entries."""
    return [e.label for e in listed]


def adaptation(given: Adapt | None) -> Adaptation | None:
    """Build the methods of a benign adaptation.

    Raises:
        ConfigError: the attack changes no weights, or a name or value is wrong.
    """
    if given is None:
        return None
    attack, judge = entry("attack", given.attack), entry("metric", given.judge)
    if attack.method.changes != "weights":
        raise ConfigError(f"expected an adaptation that trains weights, got {attack.use!r}: use lora, for example.")
    return Adaptation(given.subject, attack, judge, given.budget)


def check_claims(raw: Raw) -> None:
    """Refuse a claim that its check cannot decide."""
    for claim in raw.claims:
        limits = (claim.at_most is not None) + (claim.at_least is not None)
        if limits != (claim.check != "gap"):
            raise ConfigError(
                f"expected at_most or at_least in claim {claim.claim!r}, and neither in a gap, got {limits} of them."
            )
        if claim.check != "bound" and not claim.against:
            raise ConfigError(f"expected `against: DEFENSE` in the {claim.check} claim {claim.claim!r}, got none.")


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
    built: dict[str, Entry] = {}
    for item in listed:
        found = entry(kind, item, built)
        if found.label in built:
            raise ConfigError(f"expected different labels for {kind}s, got {found.label!r} twice: name one with `as:`.")
        built[found.label] = found
    return tuple(built.values())


def composed(kind: PluginKind, name: str, known: Mapping[str, Entry]) -> Entry:
    """`a+b`: b on the result of a. Each part is the label of an entry listed before, or a plug-in's name.

    Raises:
        ConfigError: it is not a defense, or there is no such part.
    """
    if kind != "defense":
        raise ConfigError(f"expected one {kind}, got {name!r}: only defenses compose.")
    left, _, right = name.rpartition("+")
    before = known[left] if left in known else entry(kind, left, known)
    if before.method.fidelity == "control":
        raise ConfigError(f"expected a defense to build on, got {left!r}: `{right}` alone is the same.")
    top = known[right] if right in known else entry(kind, right)
    if top.after is not None:
        raise ConfigError(f"expected a plain defense after the last +, got {right!r}: compose it from the left.")
    return dataclasses.replace(top, label=name, after=before)


def entry(kind: PluginKind, item: str | dict[str, Any], known: Mapping[str, Entry] | None = None) -> Entry:
    """One plug-in from `name`, `a+b` or `{use: name, as: label, after: label, preset: name, field: value}`."""
    known = known or {}
    if isinstance(item, str) and "+" in item and item not in names(kind):
        return composed(kind, item, known)
    given = {"use": item} if isinstance(item, str) else dict(item)
    if not isinstance(given.get("use"), str):
        raise ConfigError(f"expected `use: NAME` in every {kind}, got {item!r}: write {{use: NAME, ...}}.")
    use, after = given.pop("use"), given.pop("after", None)
    if after is not None:
        fields = {key: value for key, value in given.items() if key != "as"}
        part = dataclasses.replace(entry(kind, {"use": use, **fields}), label=use)
        whole = composed(kind, f"{after}+{use}", {**known, use: part})
        return dataclasses.replace(whole, label=str(given.get("as", whole.label)))
    label, preset = str(given.pop("as", use)), given.pop("preset", None)
    against = given.pop("against", ()) if kind == "attack" else ()
    cls = find(kind, use)
    fields_of = [f.name for f in dataclasses.fields(cls)]
    stored = getattr(cls, "presets", {})
    if preset is not None and preset not in stored:
        raise ConfigError(unknown(f"preset of {kind} {use!r}:", str(preset), stored))
    for name in given:
        if name not in fields_of:
            raise ConfigError(unknown(f"field of {kind} {use!r}:", name, fields_of))
    try:
        method = adapter(cls).validate_python({**stored.get(preset, {}), **given})
    except ValidationError as error:
        raise ConfigError(f"{kind} {use!r}: {explain(error, fields_of)}") from error
    return Entry(label, use, method, against=tuple(map(str, [against] if isinstance(against, str) else against)))


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
