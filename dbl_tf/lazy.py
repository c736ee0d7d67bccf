"""Packages whose contents are imported when they are first used (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def attributes(
    package: str, contents: Mapping[str, Sequence[str]], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package that imports its modules on first use.

    Args:
        package: the name of the package, its `__name__`.
        contents: the names that the package takes from each of its modules. The modules themselves
            are attributes as well.
        moved: modules of earlier versions, and where their contents are now.
    """
    moved = moved or {}
    module_of = {name: module for module, names in contents.items() for name in names}

    def get(name: str) -> Any:
        if name in contents:
            value: Any = importlib.import_module(f"{package}.{name}")
        elif name in module_of:
            value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        elif name in moved:
            raise ImportError(f"{package}.{name} has moved to {moved[name]}; see CHANGELOG.md")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *contents, *module_of})

    return get, names
