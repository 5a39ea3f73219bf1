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
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from benchmark.config.entries import SEARCH, Entry, Space, adapter, entries, entry, explain, labels_of
from benchmark.config.registry import FOLDERS, PluginKind, find, names
from benchmark.errors import ConfigError, PluginError, unknown
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


class PinnedModel(Strict):
    """A preset, folder or hub id, and the hub's branch, tag or commit."""

    source: str
    revision: str


def one_line(model: Any) -> Any:
    """A model given as a mapping, as `source@revision`."""
    if not isinstance(model, Mapping):
        return model
    source, revision = model.get("source"), model.get("revision")
    if set(model) != {"source", "revision"} or not (isinstance(source, str) and isinstance(revision, str)):
        raise ValueError("expected {source: NAME, revision: TEXT}, with a revision of digits in quotes")
    return f"{source}@{revision}"


ModelText = Annotated[str, BeforeValidator(one_line, json_schema_input_type=str | PinnedModel)]


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
    model: ModelText
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
    """A checked config: `raw` is the file, the entries are built methods.

    `tuned_by` holds the metrics that tuned attacks chose their settings by, where these are no longer `metrics`.
    """

    raw: Raw
    defenses: tuple[Entry, ...]
    attacks: tuple[Entry, ...]
    metrics: tuple[Entry, ...]
    adaptation: Adaptation | None = None
    tuned_by: tuple[Entry, ...] = ()


def presets() -> list[str]:
    """The names of the configs that ship with titer."""
    return sorted(file.stem for file in PRESETS.glob("*.yaml"))


def schema() -> dict[str, Any]:
    """The JSON Schema of a config file, with the name and fields of every plug-in that can be imported."""
    found = Raw.model_json_schema()
    found["$defs"] |= Space.model_json_schema()["$defs"]
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
        "attack": {
            "against": {"anyOf": [word, {"type": "array", "items": word}]},
            "after": word,
            "at": {"type": "integer", "minimum": 0},
        },
    }
    space = Space.model_json_schema()["properties"]
    for name in names(kind):
        try:
            fields = adapter(find(kind, name)).json_schema()
        except PluginError:
            continue
        presets = {"enum": sorted(getattr(find(kind, name), "presets", {}))}
        known = {"use": word, "as": word, "preset": presets, **more.get(kind, {}), **fields.get("properties", {})}
        yield {
            "if": {"properties": {"use": {"const": name}}, "required": ["use"]},
            "then": {"properties": known, "additionalProperties": False},
        }
        if kind == "attack":
            yield {
                "if": {"properties": {"use": {"const": f"{SEARCH}{name}"}}, "required": ["use"]},
                "then": {"properties": {**known, **space}, "additionalProperties": False},
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
    for attack in lists["attack"]:
        if attack.develop in raw.concepts:
            raise ConfigError(
                f"expected {attack.label!r} to choose its settings on a concept that is not reported, "
                f"got {attack.develop!r}: name another in `develop:`."
            )
    return Config(raw, lists["defense"], lists["attack"], lists["metric"], adaptation(raw.adaptation))


def adaptation(given: Adapt | None) -> Adaptation | None:
    """Build the methods of a benign adaptation.

    Raises:
        ConfigError: the attack changes no weights, or a name or value is wrong.
    """
    if given is None:
        return None
    attack, judge = entry("attack", given.attack), entry("metric", given.judge)
    if attack.trials or attack.method.changes != "weights":
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
