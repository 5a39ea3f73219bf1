"""What a config lists -> entries: built methods, and how they are combined.

defenses: none, {use: esd, as: label, preset: fast, lr: 1.0e-4}
          a+b, or {use: b, after: a}               b on the result of a
          {use: imported, as: label, files: {concept: folder}}     what `titer import` wrote
attacks:  {use: p4d, budgets: [100, 3000]}         its own grid, in place of the run's
          a>b, or {use: b, after: a, at: 25}       prompt attack b on what weight attack a has after 25 steps
          {use: "search:lora", develop: bomb, grid: {lr: [1.0e-4, 1.0e-3], rank: [4, 16]}}
                                                   LoRA with the settings that did best on another concept
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from benchmark.config import bounds, imported
from benchmark.config.registry import PluginKind, find, names
from benchmark.config.space import Space, points
from benchmark.errors import ConfigError, clipped, shown, unknown
from benchmark.given import words

SEARCH = "search:"
PARTS = 8  # defenses on top of each other


@dataclasses.dataclass(frozen=True)
class Entry:
    """A plug-in as a config names it.

    Attributes:
        label: its name on the board, `as` in the file.
        use: the plug-in.
        method: the instance.
        after: the defense that a composed one is trained on, or the weight attack that a prompt attack follows.
        at: for the latter, the steps after which it follows; 0 is the smallest budget of the run.
        against: the defenses that an attack is meant for, beside the control; all, if empty.
        own_budgets: the steps at which an attack is scored, in place of the run's; the run's, if empty.
        trials: for a tuned attack, the settings that it chooses from, each an entry.
        develop: the concept on which it chooses.
    """

    label: str
    use: str
    method: Any
    after: "Entry | None" = None
    at: int = 0
    against: tuple[str, ...] = ()
    own_budgets: tuple[int, ...] = ()
    trials: tuple["Entry", ...] = ()
    develop: str = ""

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The method's fields as JSON values, without later ones that are at their default: no key knew of them."""
        values: dict[str, Any] = adapter(type(self.method)).dump_python(self.method, mode="json")
        later: frozenset[str] = getattr(type(self.method), "later", frozenset())
        unset = {f.name for f in dataclasses.fields(self.method) if getattr(self.method, f.name) == f.default}
        return {name: value for name, value in values.items() if name not in later & unset}

    @property
    def chain(self) -> "tuple[Entry, ...]":
        """A composed entry's parts, the first trained first."""
        return (*(self.after.chain if self.after else ()), self)

    def unreleased(self, concept: str) -> bool:
        """Whether somebody else's defense, or what builds on one, has no weights for a concept."""
        own = [part.method.changes for part in self.chain if part.use == imported.USE]
        return any(concept not in changes for changes in own)

    @property
    def is_guard(self) -> bool:
        """Whether it acts while the model draws; of a composed defense the last part, on what the others trained."""
        return hasattr(self.method, "guard")

    def budgets(self, run: Sequence[int]) -> tuple[int, ...]:
        """The budgets at which an attack is scored, where the run has this grid."""
        found: tuple[int, ...] = self.method.budgets(self.own_budgets or run)
        return found

    @property
    def changes(self) -> str:
        """What an attack changes: whatever follows a weight attack works on changed weights."""
        return "weights" if self.after else str(self.method.changes)

    @property
    def kind(self) -> str:
        """As what the tables count an attack: what it changes, or, where it stands apart, how."""
        apart = {part.method.stands for part in self.chain} - {"attack"}
        return min(apart, default=self.changes)  # `beside` comes before `edit`


def labels_of(listed: tuple[Entry, ...]) -> list[str]:
    """The labels of entries."""
    return [e.label for e in listed]


def entries(kind: PluginKind, listed: tuple[str | dict[str, Any], ...]) -> tuple[Entry, ...]:
    """Build every listed plug-in; two with one label are an error."""
    built: dict[str, Entry] = {}
    for item in listed:
        found = entry(kind, item, built)
        if found.label in built:
            raise ConfigError(
                f"expected different labels for {kind}s, got {found.label!r} twice: name one with `as:`, or in "
                "benchmark.run with a mapping of names to methods."
            )
        built[found.label] = found
    return tuple(built.values())


def entry(kind: PluginKind, item: str | dict[str, Any], known: Mapping[str, Entry] | None = None) -> Entry:
    """One plug-in from `name`, `a+b`, `a>b` or `{use: name, as: label, after: label, preset: name, field: value}`."""
    known = known or {}
    if isinstance(item, str) and {"+", ">"} & set(item) and item not in names(kind):  # the names take long to read
        if "+" in item:
            return composed(kind, item, known)
        if ">" in item:
            left, _, right = item.partition(">")
            return followed(kind, left, known[right] if right in known else entry(kind, right), known)
    given = {"use": item} if isinstance(item, str) else dict(item)
    if not isinstance(given.get("use"), str):
        raise ConfigError(f"expected `use: NAME` in every {kind}, got {shown(item)}: write {{use: NAME, ...}}.")
    if kind == "defense" and given["use"] == imported.USE:
        return Entry(label_of(kind, given, imported.USE), imported.USE, imported.method(given))
    if given.get("after") is not None:
        return after(kind, given, known)
    if kind == "attack" and given["use"].startswith(SEARCH):
        return tuned(given)
    return plain(kind, given)


def after(kind: PluginKind, given: dict[str, Any], known: Mapping[str, Entry]) -> Entry:
    """`{use: b, after: a}`: a defense on the result of another, or a prompt attack on a fine-tuned model."""
    use, left = given["use"], str(given["after"])
    own = {key: value for key, value in given.items() if key not in ("as", "after", "at")}
    part = dataclasses.replace(entry(kind, own), label=use)
    if kind == "attack":
        whole = followed(kind, left, part, known, given.get("at", 0))
    else:
        whole = composed(kind, f"{left}+{use}", {**known, use: part})
    return dataclasses.replace(whole, label=label_of(kind, given, whole.label))


def composed(kind: PluginKind, name: str, known: Mapping[str, Entry]) -> Entry:
    """`a+b`: b on the result of a. Each part is the label of an entry listed before, or a plug-in's name.

    Raises:
        ConfigError: it is not a defense, or there is no such part.
    """
    if kind != "defense":
        raise ConfigError(f"expected one {kind}, got {shown(name)}: only defenses compose.")
    if name.count("+") >= PARTS:
        raise ConfigError(f"expected at most {PARTS} defenses on top of each other, got {shown(name)}: name fewer.")
    left, _, right = name.rpartition("+")
    before = known[left] if left in known else entry(kind, left, known)
    if before.method.fidelity == "control":
        raise ConfigError(f"expected a defense to build on, got {shown(left)}: `{right}` alone is the same.")
    top = known[right] if right in known else entry(kind, right)
    if top.use == imported.USE:
        raise ConfigError(f"expected an imported change first, got {shown(name)}: it is one of the base alone.")
    if top.after is not None:
        raise ConfigError(f"expected a plain defense after the last +, got {shown(right)}: compose it from the left.")
    if before.is_guard:
        raise ConfigError(f"expected at most one guard, and as the last part, got {shown(name)}: put {left} last.")
    return dataclasses.replace(top, label=name, after=before)


def followed(kind: PluginKind, left: str, right: Entry, known: Mapping[str, Entry], at: Any = 0) -> Entry:
    """`a>b`: prompt attack b on the model that weight attack a has after `at` steps.

    Raises:
        ConfigError: a trains no weights, b searches no prompts, or `at` is no number of steps.
    """
    if kind != "attack":
        raise ConfigError(f"expected one {kind}, got {shown(left)}>{right.use}: only attacks follow each other with >.")
    before = known[left] if left in known else entry(kind, left, known)
    if not hasattr(before.method, "finetune") or before.trials or before.after:
        raise ConfigError(f"expected an attack that trains weights before >, got {shown(left)}: use lora, for example.")
    if right.after or not hasattr(right.method, "search"):
        raise ConfigError(f"expected an attack that searches prompts after >, got {right.use!r}: use unlearndiffatk.")
    if not isinstance(at, int) or isinstance(at, bool) or at < 0:
        raise ConfigError(f"expected `at:` steps of {shown(left)}, got {shown(at)}: give one of the run's budgets.")
    return dataclasses.replace(right, label=f"{left}>{right.label}", after=before, at=at)


def tuned(given: dict[str, Any]) -> Entry:
    """`search:a`: attack a with the settings of a declared space that did best on the concept `develop`.

    Raises:
        ConfigError: no grid or concept is given, or the space is empty or too large.
    """
    use = given["use"].removeprefix(SEARCH)
    own = {key: value for key, value in given.items() if key not in ("grid", "develop", "trials", "use", "as")}
    try:
        space = Space.model_validate({key: given[key] for key in ("grid", "develop", "trials") if key in given})
    except ValidationError as error:
        raise ConfigError(f"attack {shown(given['use'])}: {explain(error, list(Space.model_fields))}") from error
    if not hasattr(find("attack", use), "finetune"):
        raise ConfigError(f"expected an attack that trains weights after {SEARCH}, got {shown(use)}: use search:lora.")
    template = plain("attack", {"use": use, **own})
    fixed = {key: value for key, value in own.items() if key != "against"}
    trials = tuple(
        plain("attack", {"use": use, **fixed, **point, "as": f"{use} trial {number}"})
        for number, point in enumerate(points(space))
    )
    label = label_of("attack", given, given["use"])
    return dataclasses.replace(template, label=label, use=use, trials=trials, develop=space.develop)


def plain(kind: PluginKind, given: dict[str, Any]) -> Entry:
    """One plug-in with its fields.

    Raises:
        ConfigError: no such plug-in, preset or field, or a wrong value.
    """
    given = dict(given)
    use = given.pop("use")
    label, preset = label_of(kind, given, use), given.pop("preset", None)
    given.pop("as", None)
    against = meant_for(given.pop("against", ())) if kind == "attack" else ()
    budgets = given.pop("budgets", None) if kind == "attack" else None
    cls = find(kind, use)
    fields_of = [f.name for f in dataclasses.fields(cls)]
    stored = getattr(cls, "presets", {})
    if preset is not None and (not isinstance(preset, str) or preset not in stored):
        raise ConfigError(unknown(f"preset of {kind} {use!r}:", preset, stored))
    for name in given:
        if name not in fields_of:
            raise ConfigError(unknown(f"field of {kind} {use!r}:", name, fields_of))
    try:
        method = adapter(cls).validate_python({**stored.get(preset, {}), **given})
    except ValidationError as error:
        raise ConfigError(f"{kind} {use!r}: {explain(error, fields_of)}") from error
    if fault := bounds.fault(method, given):
        raise ConfigError(f"{kind} {use!r}: {fault}")
    return Entry(label, use, method, against=against, own_budgets=scored_at(label, method, budgets))


def label_of(kind: PluginKind, given: Mapping[str, Any], otherwise: str) -> str:
    """The name of an entry on the board: `as`, or `otherwise`.

    Raises:
        ConfigError: it is none that a table can show.
    """
    try:
        return words.label(given["as"]) if "as" in given else otherwise
    except ValueError as error:
        raise ConfigError(f"{kind} {shown(given.get('use'))}: at 'as': {error}: choose another.") from error


def meant_for(against: Any) -> tuple[str, ...]:
    """The defenses that an attack is meant for.

    Raises:
        ConfigError: it is no label and no list of labels.
    """
    listed = [against] if isinstance(against, str) else against
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise ConfigError(f"expected `against:` with a defense's label or a list of them, got {shown(against)}.")
    return tuple(listed)


def scored_at(label: str, method: Any, budgets: Any) -> tuple[int, ...]:
    """The budgets of an attack's own.

    Raises:
        ConfigError: they are no rising numbers above 0, or the attack has others by nature.
    """
    if budgets is None:
        return ()
    is_list = isinstance(budgets, list | tuple) and all(type(b) is int and 0 < b <= bounds.LARGEST for b in budgets)
    if not is_list or not budgets or list(budgets) != sorted(set(budgets)):
        raise ConfigError(
            f"expected rising `budgets:` from 1 to {bounds.LARGEST:,} of {shown(label)}, got {shown(budgets)}: "
            "leave them out to take the run's."
        )
    if tuple(method.budgets(budgets)) != tuple(budgets):
        raise ConfigError(
            f"expected no `budgets:` of {shown(label)}, got {shown(list(budgets))}: it counts {method.unit}, "
            "whatever the grid; set its fields."
        )
    return tuple(budgets)


def adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """Pydantic's validator for a method's dataclass, built once."""
    return built(cast("Hashable", cls))


@cache
def built(cls: Hashable) -> TypeAdapter[Any]:
    """See `adapter`; mypy takes no class for hashable."""
    return TypeAdapter(cast("type[Any]", cls))


def explain(error: ValidationError, known: list[str]) -> str:
    """The first fault in one line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return unknown("key", place, known)
    got = first.get("input")
    advice = "put it in quotes" if first["type"] == "string_type" and not isinstance(got, list | dict) else "change it"
    return f"at {shown(place)}: {clipped(first['msg'])}, got {shown(got)}: {advice}."
