"""A script's or a notebook's own classes: they need no package, and their code is part of their key."""

import dataclasses
import hashlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.config import registry
from benchmark.config.entries import adapter
from benchmark.config.registry import PluginKind
from benchmark.errors import ConfigError


def items(kind: PluginKind, methods: Sequence[Any] | Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each method as a config's item; its class is registered if it is not installed.

    Raises:
        ConfigError: it is no instance of a plug-in class, or the class lacks what its contract demands.
    """
    pairs = methods.items() if isinstance(methods, Mapping) else [(None, method) for method in methods]
    for given, method in pairs:
        check(kind, method)
        cls = type(method)
        use = installed(kind, cls)
        if use is None:
            use = f"{cls.__name__}-{fingerprint(cls)}"
            registry.register(kind, use, cls)
        fields = adapter(cls).dump_python(method, mode="json")
        yield {"use": use, "as": given or getattr(method, "label", cls.__name__), **fields}


def check(kind: PluginKind, method: Any) -> None:
    """Refuse what is no plug-in of that kind.

    Raises:
        ConfigError: one line on what is wrong.
    """
    cls, base = type(method), registry.base_of(kind)
    if isinstance(method, type):
        raise ConfigError(f"expected an instance of a {kind}, got the class {method.__name__}: write it with ().")
    if not isinstance(method, base):
        raise ConfigError(f"expected a {kind}, got a {cls.__name__}: derive it from {base.__module__}.{base.__name__}.")
    if "__dataclass_params__" not in vars(cls) or not vars(cls)["__dataclass_params__"].frozen:
        raise ConfigError(f"expected a frozen {cls.__name__}: write @dataclass(frozen=True, kw_only=True) above it.")
    if missing := registry.undeclared(cls):
        raise ConfigError(f"expected {', '.join(missing)} in {cls.__name__}, got none: see {base.__module__}.")


def installed(kind: PluginKind, cls: type[Any]) -> str | None:
    """The name under which a class is installed, if it is."""
    folder, _, name = cls.__module__.rpartition(".")
    if folder == registry.FOLDERS[kind] and name in registry.builtin(kind):
        return name
    place = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, point in registry.external(kind).items() if point.value == place), None)


def fingerprint(cls: type[Any]) -> str:
    """Twelve hex digits over the code of a class, and over the functions, classes and plain constants of its own module
    that it uses.

    It is the code in memory: a file may have changed since. Comments do not enter; another Python version gives
    another hash.
    """
    seen: set[int] = set()
    return hashlib.sha256(repr(code_of(cls, cls.__module__, seen)).encode()).hexdigest()[:12]


def code_of(item: Any, module: str, seen: set[int]) -> Any:
    """What decides how `item` behaves, as nested tuples of text that are the same in every process."""
    if isinstance(item, str | bytes | int | float | complex | None | types.EllipsisType):
        return repr(item)
    if isinstance(item, tuple | list):
        return tuple(code_of(part, module, seen) for part in item)
    if isinstance(item, set | frozenset):
        return tuple(sorted(repr(code_of(part, module, seen)) for part in item))
    if isinstance(item, Mapping):
        return tuple((repr(key), code_of(value, module, seen)) for key, value in item.items())
    if isinstance(item, types.CodeType):
        return item.co_code.hex(), item.co_names, item.co_varnames, code_of(item.co_consts, module, seen)
    if isinstance(item, staticmethod | classmethod):
        return code_of(item.__func__, module, seen)
    if isinstance(item, property):
        return code_of((item.fget, item.fset), module, seen)
    name = f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', type(item).__qualname__)}"
    if getattr(item, "__module__", None) != module or id(item) in seen:
        return name
    seen.add(id(item))
    if isinstance(item, types.FunctionType):
        used = {n: item.__globals__[n] for n in sorted(names_in(item.__code__)) if n in item.__globals__}
        cells = [cell.cell_contents for cell in item.__closure__ or () if filled(cell)]
        return code_of((item.__code__, item.__defaults__, item.__kwdefaults__, cells, used), module, seen)
    if isinstance(item, type):
        fields = [(f.name, str(f.type), f.default, f.default_factory) for f in fields_of(item)]
        own = {n: v for n, v in sorted(vars(item).items()) if written(n, v)}
        return code_of((fields, own, item.__bases__), module, seen)
    return name


def fields_of(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a dataclass; none of another class."""
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def written(name: str, value: Any) -> bool:
    """Whether a class attribute was written by hand: what Python and `dataclass` add says nothing more."""
    if name.startswith("__") and name.endswith("__"):
        return isinstance(value, types.FunctionType) and value.__code__.co_filename != "<string>"
    return name != "_abc_impl"


def names_in(code: types.CodeType) -> set[str]:
    """Every name that a function, and those inside it, look up."""
    inner = [names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names}.union(*inner)


def filled(cell: types.CellType) -> bool:
    """Whether a closure's variable has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
