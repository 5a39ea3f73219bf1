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
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from benchmark.config.claims import ClaimText, check_forms, check_names
from benchmark.config.entries import SEARCH, Entry, adapter, entries, entry, explain, labels_of
from benchmark.config.imported import USE
from benchmark.config.registry import FOLDERS, PluginKind, find, names
from benchmark.config.space import Space
from benchmark.errors import ConfigError, PluginError, shown, unknown
from benchmark.given.files import is_file, is_folder
from benchmark.given.values import load_yaml
from benchmark.types import Precision, Solver

PRESETS = Path(__file__).parent / "presets"


class Strict(BaseModel):
    """Frozen, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def digits(value: Any) -> Any:
    """A number as it was given: True and "1" are taken for 1 otherwise."""
    if isinstance(value, bool | str):
        raise ValueError("expected a number, without quotes")
    return value


Whole = Annotated[int, BeforeValidator(digits, json_schema_input_type=int)]
MOST = 1_000_000  # of anything that is counted


class Sampling(Strict):
    """How every cell's images are drawn: steps of a deterministic sampler, and classifier-free guidance."""

    steps: Whole = Field(50, ge=1, le=1000)
    guidance: float = Field(7.5, ge=1.0, le=1000, allow_inf_nan=False)
    scheduler: Solver = "ddim"


class Counts(Strict):
    """A number for each split: images a prompt, or prompts of the card (0: all of them)."""

    concept: Whole = Field(0, ge=0, le=MOST)
    retained: Whole = Field(0, ge=0, le=MOST)
    safe: Whole = Field(0, ge=0, le=MOST)
    attacker: Whole = Field(0, ge=0, le=MOST)
    defender: Whole = Field(0, ge=0, le=MOST)
    prior: Whole = Field(0, ge=0, le=MOST)
    benign: Whole = Field(0, ge=0, le=MOST)


class ImageCounts(Counts):
    """Images of each prompt, by split."""

    concept: Whole = Field(1, ge=1, le=MOST)
    retained: Whole = Field(1, ge=1, le=MOST)
    safe: Whole = Field(1, ge=1, le=MOST)
    attacker: Whole = Field(1, ge=1, le=MOST)
    defender: Whole = Field(1, ge=1, le=MOST)
    prior: Whole = Field(1, ge=1, le=MOST)
    benign: Whole = Field(1, ge=1, le=MOST)


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
    budget: Whole = Field(100, ge=1, le=MOST)


class Raw(Strict):
    """The file as written."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)  # of a folder
    model: ModelText
    concepts: tuple[str | tuple[str, ...], ...] = Field(min_length=1)
    defenses: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    attacks: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    metrics: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    sampling: Sampling = Sampling()  # type: ignore[call-arg]
    seeds: tuple[Annotated[Whole, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    budgets: tuple[Annotated[Whole, Field(le=MOST)], ...] = ()
    images: ImageCounts = ImageCounts()  # type: ignore[call-arg]
    prompts: Counts = Counts()  # type: ignore[call-arg]
    confirm: Whole = Field(0, ge=0, le=MOST)
    draws: Whole = Field(1000, ge=100, le=100_000)
    utility_floor: float = Field(0.8, ge=0.0, le=1.0)
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

    @property
    def given_up(self) -> tuple[str, ...]:
        """What the tables cannot tell for want of a metric, a line each."""
        if any(entry.use == "clip_score" for entry in self.metrics):
            return ()
        told = (
            "without clip_score nothing tells that images of other things fell apart: no cell is `collapsed`, and the "
            "utility that a rank asks for is retained accuracy alone; add it to metrics"
        )
        return (told,)


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
            "budgets": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
        },
    }
    if kind == "defense":
        files = {"type": "object", "additionalProperties": word}
        yield {
            "if": {"properties": {"use": {"const": USE}}, "required": ["use"]},
            "then": {"properties": {"use": word, "as": word, "files": files}, "additionalProperties": False},
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
        ConfigError: there is no such file, or it cannot be read, or it is no YAML.
    """
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source)
    if not is_file(path):
        raise ConfigError(
            f"expected a preset or a YAML file, got {shown(source)}. {unknown('preset', source, presets())}"
        )
    values = load_yaml(path, "YAML", ConfigError)
    return values if source in presets() else beside(values, path.parent)


def beside(values: Any, folder: Path) -> Any:
    """The values of a config; cards and imported changes that are not here are read from its own folder."""

    def at(name: Any) -> Any:
        is_path = isinstance(name, str) and name.endswith((".yaml", ".yml"))
        return str(folder / name) if is_path and not is_file(Path(name)) and is_file(folder / name) else name

    def with_files(item: Any) -> Any:
        if not (isinstance(item, dict) and isinstance(item.get("files"), dict)):
            return item
        return {**item, "files": {name: near(place) for name, place in item["files"].items()}}

    def near(place: Any) -> Any:
        is_there = isinstance(place, str) and not is_folder(Path(place)) and is_folder(folder / place)
        return str(folder / place) if is_there else place

    def with_card(values: Any, key: str) -> Any:
        return {**values, key: at(values[key])} if isinstance(values, dict) and key in values else values

    if not isinstance(values, dict):
        return values
    lists = {key: values[key] for key in ("concepts", "attacks", "defenses") if isinstance(values.get(key), list)}
    concepts = [[at(one) for one in item] if isinstance(item, list) else at(item) for item in lists.get("concepts", ())]
    cards = {"concepts": concepts} if "concepts" in lists else {}
    attacks = {"attacks": [with_card(item, "develop") for item in lists["attacks"]]} if "attacks" in lists else {}
    defenses = {"defenses": [with_files(item) for item in lists["defenses"]]} if "defenses" in lists else {}
    subject = {"adaptation": with_card(values["adaptation"], "subject")} if "adaptation" in values else {}
    return {**values, **cards, **attacks, **defenses, **subject}


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
        raise ConfigError(
            f"expected rising budgets above 0, got {shown(list(raw.budgets))}: budget 0 is always included."
        )
    for key, listed in {"concepts": raw.concepts, "seeds": raw.seeds}.items():
        if len(set(listed)) < len(listed):
            twice = next(item for item in listed if list(listed).count(item) > 1)
            raise ConfigError(f"expected different {key}, got {shown(twice)} twice: remove one of them.")
    check_forms(raw.claims)
    lists = {kind: entries(kind, getattr(raw, plural)) for kind, plural in FOLDERS.items()}
    for label in (label for attack in lists["attack"] for label in attack.against):
        if label not in labels_of(lists["defense"]):
            raise ConfigError(unknown("defense in `against`:", label, labels_of(lists["defense"])))
    check_names(raw.claims, dict(lists), raw.budgets)
    for attack in lists["attack"]:
        if attack.develop in {name for item in raw.concepts for name in members(item)}:
            raise ConfigError(
                f"expected {attack.label!r} to choose its settings on a concept that is not reported, "
                f"got {attack.develop!r}: name another in `develop:`."
            )
    return Config(raw, lists["defense"], lists["attack"], lists["metric"], adaptation(raw.adaptation))


def members(item: str | tuple[str, ...]) -> tuple[str, ...]:
    """The concepts of one item of `concepts`: one, or several that are erased together."""
    return (item,) if isinstance(item, str) else item


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


def restrict(config: Config, only: Mapping[str, tuple[str, ...]]) -> Config:
    """Keep the named concepts, defenses or attacks; the control stays, since every comparison needs it."""
    raw, parts = config.raw, {"defense": config.defenses, "attack": config.attacks}
    for what, wanted in only.items():
        items = {"+".join(members(item)): item for item in raw.concepts}
        known = list(items) if what == "concept" else labels_of(parts.get(what, ()))
        if not known:
            raise ConfigError(unknown("--only key", what, ("concept", "defense", "attack")))
        for label in wanted:
            if label not in known:
                raise ConfigError(unknown(what, label, known))
        if what == "concept":
            raw = raw.model_copy(update={"concepts": tuple(item for name, item in items.items() if name in wanted)})
        else:
            parts[what] = tuple(e for e in parts[what] if e.label in wanted or e.use == "none")
    return dataclasses.replace(config, raw=raw, defenses=parts["defense"], attacks=parts["attack"])
