"""Functions of the user's, by name: package.module:function or path/to/file.py:function."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def function_at(name: str) -> Callable:
    """The function that `name` points to. Raises ValueError with the reason when it cannot be had."""
    place, _, function = name.rpartition(":")
    found = getattr(_module(place), function, None)
    if not callable(found):
        raise ValueError(f"{place} holds no function {function!r}")
    return found


def _module(place: str) -> ModuleType:
    """The module at a dotted name or a path."""
    path = Path(place).resolve()
    if place.endswith(".py") and not path.is_file():
        raise ValueError(f"the file {path} does not exist")
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"srpo_user_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses and pickle look for it
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:  # a module that ends the program must not end it with success
        sys.modules.pop(f"srpo_user_{path.stem}", None)
        raise ValueError(f"the module {place!r} cannot be imported: {type(error).__name__}: {error}") from error
