"""Registers with Keras all that a saved model may hold, as soon as there is a Keras to tell.

`import dbl_tf` promises that `keras.models.load_model` finds the classes of the package. Importing
Keras takes seconds, which a program that reads statistics, or prints its help, need not spend. So
the classes are registered at once where Keras has been imported, and otherwise at the end of the
outermost import in which it is: that of Keras itself, or of a module of this package that needs it.
Until then, the loaders of these modules are wrapped by an import hook (PEP 451), as
`importlib.util.LazyLoader` wraps a loader.
"""

import importlib
import importlib.abc
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# All modules with classes that Keras saves by name.
MODULES = ("classifiers", "losses", "models", "optimizers", "ranking_losses", "robust_losses")


class _Depth(threading.local):
    """The number of wrapped imports that a thread is in."""

    value = 0


_depth = _Depth()


def register_with_keras() -> None:
    """Registers the classes now if Keras has been imported, and otherwise when it is."""
    if "keras" in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, _Finder)]
    for name in MODULES:
        importlib.import_module(f"dbl_tf.{name}")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Keras and the modules of this package as others do, and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "keras" and not fullname.startswith("dbl_tf."):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader)
                return spec
        return None


class _RegisteringLoader(importlib.abc.Loader):
    """Hands a module back to the loader that it wraps, and then may register the classes."""

    def __init__(self, loader: Any):
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # what `importlib.util.find_spec` returns is complete
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        _depth.value += 1
        try:
            self._loader.exec_module(module)
        finally:
            _depth.value -= 1
        # Inside the import of a module of this package, the others may need what it lacks so far.
        if not _depth.value and "keras" in sys.modules:
            _register()
