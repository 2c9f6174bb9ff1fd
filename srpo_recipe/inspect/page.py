"""The page's file: markup, style and script of assets/inspect, and the data, compressed.

Data is gzip in base64, so no text of a model's stands in the markup; the script puts texts into the page as text alone. The
page's own policy lets the browser run this one script and use this one style, and load nothing.
"""

import base64
import gzip
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from srpo_recipe.inspect.contents import Contents
from srpo_recipe.records.files import whole_file

SCRIPTS = ("data.js", "curves.js", "table.js", "rollout.js", "main.js")


def write_page(path: Path, contents: Contents) -> Path:
    """Write the page, whole or not at all. Returns its path."""
    style = _asset("page.css")
    script = "(() => {\n" + "\n".join(_asset(name) for name in SCRIPTS) + "})();\n"
    before, after = (
        _asset("page.html")
        .replace("{{script-hash}}", _hash(script))
        .replace("{{style-hash}}", _hash(style))
        .replace("{{style}}", style)
        .split("{{data}}")
    )
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(before)
        file.write(_data("overview", contents.overview))
        for number, block in enumerate(contents.blocks):
            file.write(_data(f"block-{number}", block))
        file.write(after.replace("{{script}}", script))
    return path


def _data(name: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
    return f'<script type="text/plain" id="{name}">{packed}</script>\n'


def _asset(name: str) -> str:
    return (resources.files("srpo_recipe") / "assets" / "inspect" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
