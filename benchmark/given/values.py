"""YAML -> values that stay small: a few lines can name each other until they are a billion."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, MappingStartEvent, ScalarEvent

from benchmark.errors import DataError, InputError, clipped
from benchmark.given.files import contents

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML has it
YAML_BYTES, DEPTH, NODES = 4 << 20, 50, 1_000_000
# Beside its own errors, PyYAML lets through those of the types that a text cannot be made into.
FAULTS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)


def load_yaml(path: Path, what: str, fault: type[InputError] = DataError) -> Any:
    """The values of a YAML file.

    Args:
        path: the file.
        what: what it should be, for the message.
        fault: the error to raise.

    Raises:
        InputError: it cannot be read, is no YAML, or is too large; one line.
    """
    try:
        return values_of(contents(path, YAML_BYTES).decode("utf-8-sig"))
    except (OSError, *FAULTS) as error:
        why = clipped(" ".join(str(error).split()), 300)
        raise fault(f"expected {what} in {path}, got {why or type(error).__name__}: mend the file.") from error


def values_of(text: str) -> Any:
    """The values of a YAML text. `FAULTS` has what it raises."""
    survey(text)
    return yaml.load(text, Loader=LOADER)


@dataclass
class Open:
    """A list or mapping that is being read: its keys so far, None for a list; the nodes in it, its anchor."""

    keys: set[str] | None
    anchor: str | None
    nodes: int = 1
    is_key: bool = field(default=True, init=False)


def survey(text: str) -> None:
    """Refuse what is deep, large once its aliases are replaced, or says a key twice. Nothing is built yet.

    Raises:
        YAMLError: any of these, with the place.
    """
    stack, sizes = [Open(None, None)], dict[str, int]()
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, CollectionStartEvent):
            stack.append(Open(set() if isinstance(event, MappingStartEvent) else None, event.anchor))
            if len(stack) > DEPTH:
                raise refusal(f"lists and mappings that are nested more than {DEPTH} deep", event)
        elif isinstance(event, CollectionEndEvent):
            done = stack.pop()
            if done.anchor:
                sizes[done.anchor] = done.nodes
            count(stack[-1], done.nodes, event)
        elif isinstance(event, AliasEvent):
            if event.anchor not in sizes:
                raise refusal(f"the alias *{clipped(str(event.anchor))}, which names nothing before it", event)
            count(stack[-1], sizes[event.anchor], event)
        elif isinstance(event, ScalarEvent):
            if event.anchor:
                sizes[event.anchor] = 1
            once(stack[-1], event)
            count(stack[-1], 1, event)


def once(within: Open, event: ScalarEvent) -> None:
    """Refuse a key that the mapping has already: YAML would keep the last of its values and drop the others."""
    if within.keys is None or not within.is_key:
        return
    if event.value in within.keys:
        raise refusal(f"the key {clipped(event.value)!r} twice in one mapping; remove one of them", event)
    within.keys.add(event.value)


def count(within: Open, nodes: int, event: Event) -> None:
    """Count what was read into what it is in; in a mapping, keys and values take turns."""
    within.nodes += nodes
    within.is_key = not within.is_key
    if within.nodes > NODES:
        raise refusal(f"more than {NODES:,} values once its aliases are replaced", event)


def refusal(what: str, event: Event) -> yaml.YAMLError:
    """The error, with its line."""
    mark: Any = event.start_mark
    return yaml.YAMLError(f"{what}, in line {mark.line + 1}")
