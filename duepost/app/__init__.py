"""Our packages by names that are nobody else's: `duepost.app.actors` and `duepost.app.models`.

A process of our own finds them as `actors` and `models`. A host's process may have packages of these names itself, so
there the broker is imported from here, and what its modules import of `actors` and `models` is looked for here too. A
module is loaded once, whichever of its two names is asked for. The packages' own `__init__` is not run: that of
`actors` builds the email application.

Importing this puts a finder first in `sys.meta_path`. It answers for our modules only.
"""

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final

from duepost.bundled import ROOT

#: The packages that may be a host's too.
PACKAGES: Final = frozenset({"actors", "models"})

PREFIX: Final = f"{__name__}."


class BundledFinder(MetaPathFinder):
    """Finds our modules under this package, and those that are loaded already under their other name."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The module's specification, as Python's import system wants it; None for what is not ours."""
        if fullname.startswith(PREFIX):
            return _under_this_package(fullname)
        if fullname.partition(".")[0] in PACKAGES and path is not None and any(map(_is_ours, path)):
            return _loaded_as(f"{PREFIX}{fullname}", fullname)
        return None


class BundledLoader(SourceFileLoader):
    """Loads one of our modules, to which `actors` and `models` are ours."""

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module."""
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_bundled}
        super().exec_module(module)


class LoadedAlready(Loader):
    """Gives a module that is loaded under another name."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002
        """The module itself."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the module as it was."""
        module.__spec__ = self._spec


def import_bundled(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002 - as Python calls them
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """What `import` does in our modules: `actors` and `models` are those of this package."""
    package = name.partition(".")[0]
    if level or package not in PACKAGES:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    if fromlist:
        return builtins.__import__(f"{PREFIX}{name}", globals, locals, fromlist, 0)
    importlib.import_module(f"{PREFIX}{name}")
    return sys.modules[f"{PREFIX}{package}"]


def _under_this_package(fullname: str) -> ModuleSpec | None:
    name = fullname.removeprefix(PREFIX)
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return None
    if not rest:
        bare = ModuleSpec(fullname, None, is_package=True)
        bare.submodule_search_locations = [str(ROOT / package)]
        return bare
    found = PathFinder.find_spec(fullname, [str(ROOT.joinpath(package, *rest[:-1]))])
    if found is None or found.origin is None:
        return found
    loaded = _loaded_as(name, fullname)
    if loaded is not None:
        return loaded
    if isinstance(found.loader, SourceFileLoader):
        found.loader = BundledLoader(fullname, found.origin)
    return found


def _loaded_as(name: str, fullname: str) -> ModuleSpec | None:
    """A specification that gives a module of ours which is loaded as `name`; None if it is not, or is not ours."""
    module = sys.modules.get(name)
    if module is None or not _is_ours(getattr(module, "__file__", None) or "/"):
        return None
    return ModuleSpec(fullname, LoadedAlready(module), is_package=hasattr(module, "__path__"))


def _is_ours(path: str) -> bool:
    return any(Path(path).is_relative_to(ROOT / package) for package in PACKAGES)


if not any(isinstance(each, BundledFinder) for each in sys.meta_path):
    sys.meta_path.insert(0, BundledFinder())
