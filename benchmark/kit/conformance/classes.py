"""What every plug-in's class must be: frozen, documented, made from JSON values, without side effects in its source."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

from pydantic import TypeAdapter

from attacks.base import Attack
from benchmark.config.registry import undeclared
from benchmark.kit.conformance.expect import expect
from defenses.base import Defense
from metrics.base import Metric

HEADINGS: Mapping[type, tuple[str, ...]] = {
    Defense: ("Differs", "Protects"),
    Attack: ("Access", "Budget"),
    Metric: ("Direction", "Range", "Per", "Backbone", "Reference"),
}
FORBIDDEN = ("print(", "manual_seed(", "torch.save", "torch.load", "cuda", "argparse", "__main__", "os.environ")


def check_class(cls: type[Any], base: type[Any], fields: Mapping[str, Any] | None = None) -> None:
    """What can be checked without running the method."""
    is_a_frozen_dataclass(cls, base)
    documents_itself(cls, base)
    fields_survive_json(cls, fields)
    presets_name_fields(cls, fields)
    if cls.__module__ != "__main__":  # a script or notebook may print
        keeps_its_hands_off(inspect.getsource(sys.modules[cls.__module__]), cls.__name__)


def is_a_frozen_dataclass(cls: type[Any], base: type[Any]) -> None:
    """A plug-in is a frozen, keyword-only dataclass with a version."""
    expect(issubclass(cls, base), f"{cls.__name__} to derive from {base.__name__}", [b.__name__ for b in cls.__bases__])
    own = vars(cls).get("__dataclass_params__")  # a class without the decorator inherits its parent's
    expect(own and own.frozen, f"@dataclass(frozen=True, kw_only=True) above {cls.__name__}", "a class without it")
    free = [f.name for f in fields_of(cls) if not f.kw_only]
    expect(not free, f"keyword-only fields in {cls.__name__}", free)
    missing = undeclared(cls)
    expect(not missing, f"{', '.join(missing)} in {cls.__name__}, as {base.__name__} declares it", "none")
    version = getattr(cls, "version", None)
    expect(isinstance(version, int), f"{cls.__name__}.version to be a whole number", version)


def documents_itself(cls: type[Any], base: type[Any]) -> None:
    """The text at the top of its file has the lines that readers look for."""
    text = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
    missing = [line for line in HEADINGS[base] if line not in text]
    expect(not missing, f"the lines {HEADINGS[base]} at the top of the file of {cls.__name__}", f"none for {missing}")


def fields_survive_json(cls: type[Any], fields: Mapping[str, Any] | None = None) -> None:
    """The runner rebuilds a method from the JSON of its fields."""
    adapter = TypeAdapter(cls)
    method = adapter.validate_python(dict(fields or {}))
    again = adapter.validate_python(adapter.dump_python(method, mode="json"))
    expect(again == method, f"{method} after a round trip through JSON", again)


def presets_name_fields(cls: type[Any], fields: Mapping[str, Any] | None = None) -> None:
    """A preset sets known fields to valid values."""
    known = {f.name for f in fields_of(cls)}
    for name, preset in getattr(cls, "presets", {}).items():
        expect(set(preset) <= known, f"fields of {cls.__name__} in its preset {name!r}", sorted(set(preset) - known))
        TypeAdapter(cls).validate_python({**(fields or {}), **preset})


def keeps_its_hands_off(source: str, where: str) -> None:
    """A method neither prints, saves, seeds globally nor picks a device."""
    found = [word for word in FORBIDDEN if word in source]
    expect(not found, f"a method that leaves printing, seeds, files and devices to the runner in {where}", found)
