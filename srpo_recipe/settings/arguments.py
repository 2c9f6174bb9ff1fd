"""Numbers on a command line that is no config's: argparse's `type=`, with the kinds of settings/kinds.py."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from srpo_recipe.settings.kinds import Kind


def integer(kind: Kind) -> Callable[[str], int]:
    """Reads a whole number of a kind; argparse says what was wrong and what is asked for."""
    return lambda text: _read(int, text, kind)


def real(kind: Kind) -> Callable[[str], float]:
    """Reads a number of a kind."""
    return lambda text: _read(float, text, kind)


def json_object(text: str) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object: write it as '{{\"name\": true}}'")
    return found


def _read(convert: Callable[[str], Any], text: str, kind: Kind) -> Any:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if not kind.holds(value):
        raise argparse.ArgumentTypeError(f"{text!r}: set it to {kind.fix}")
    return value
