"""Writes every table of measured runs in README and docs from its JSON in docs/results.

python docs/draw.py            # tests/test_results.py fails while a page and its results differ

A page holds a place for a table, between two comments that a reader does not see:

    <!-- results/quickstart.json -->
    ...
    <!-- end of results -->

and the script writes what stands between them: the table, and a line that says where it comes from. A file of results is one
JSON object: about, command, commit, machine, seeds, date (YYYY-MM-DD, on which the figures were written down; what was not noted
says "not noted"), columns, rows, and said: sentences of a page outside of the table that repeat figures of it, each {"page",
"text", "cells"}, where the numbers in text are roundings of those cells; source says in other words where figures come from that
nobody measured here. A program writes such a file with
srpo_recipe/records/results.py.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
FIELDS = ("about", "command", "commit", "machine", "seeds", "date", "columns", "rows")
PLACE = re.compile(r"^<!-- results/([\w.-]+\.json) -->\n(.*?)^<!-- end of results -->$", re.M | re.S)
MADE = "made by docs/make.py"
NUMBER = r"\d[\d,]*(?:\.\d+)?"
# A cell of a table of measurements: a number, or a text with a decimal or a number with a unit.
MEASURED = re.compile(rf"^{NUMBER}$|\d\.\d|\b{NUMBER} ?(?:%|s|ms|minutes|hours|[MG]i?B)(?![\w])")


class Table(NamedTuple):
    """A Markdown table: its first line in the page (from 1), the cells of its header and of its rows."""

    line: int
    header: list[str]
    rows: list[list[str]]


def pages() -> list[Path]:
    """README and the pages of docs, but for those made from the code."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in found if MADE not in page.read_text(encoding="utf-8")]


def read(path: Path) -> dict[str, Any]:
    """A file of results. Raises ValueError, with the file, for one that lacks a field or whose rows do not fit its columns."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if missing := [field for field in FIELDS if result.get(field) in (None, "", [])]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    for number, row in enumerate(result["rows"], start=1):
        if len(row) != len(result["columns"]):
            raise ValueError(f"{path}, row {number}: {len(row)} cells for {len(result['columns'])} columns")
    return result


def drawn(name: str, result: dict[str, Any], page: Path) -> str:
    """What stands between the comments: the table, and where it comes from."""
    lines = [_line(result["columns"]), "|---" * len(result["columns"]) + "|", *(_line(row) for row in result["rows"])]
    up = "docs/" if page.parent == ROOT else ""
    seeds = result["seeds"] if isinstance(result["seeds"], str) else " ".join(map(str, result["seeds"]))
    text = result.get("source") or f"commit {result['commit']}, seeds {seeds}, {result['date']}."
    source = f"[{name.removesuffix('.json')}]({up}results/{name}): {text}"
    return "\n".join(lines) + f"\n\n{source}\n"


def _line(cells: list[Any]) -> str:
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |".replace("|  |", "| |")


def draw(page: Path, text: str) -> str:
    """The page's text with every table drawn anew. Raises ValueError as `read` does, and for a place without results."""

    def fill(match: re.Match) -> str:
        path = RESULTS / match[1]
        if not path.exists():
            raise ValueError(f"{page}: no {path.relative_to(ROOT)}")
        return f"<!-- results/{match[1]} -->\n{drawn(match[1], read(path), page)}<!-- end of results -->"

    return PLACE.sub(fill, text)


def tables(text: str) -> list[Table]:
    """The tables of a page outside of code blocks and of the places that are drawn."""
    for pattern in (PLACE, re.compile(r"^```.*?^```", re.M | re.S)):
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    lines, found, start = text.split("\n"), [], 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end - start > 2 and set(lines[start + 1]) <= set("|-: "):
            cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:end]]
            found.append(Table(start + 1, cells[0], cells[2:]))
        start = max(end, start + 1)
    return found


def measured(table: Table) -> list[str]:
    """The cells of a table that look like measurements: numbers outside of code."""
    cells = [re.sub(r"`+[^`]*`+", "", cell).strip() for row in table.rows for cell in row]
    return [cell for cell in cells if MEASURED.search(cell)]


def unsaid(page: Path, text: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """Sentences that results want in this page and that are not there, or whose numbers are none of their cells."""
    found = []
    flat = " ".join(text.split())
    for name, result in results.items():
        for said in result.get("said", []):
            if ROOT / said["page"] != page:
                continue
            cells = {str(cell) for row in result["rows"] for cell in row}
            if " ".join(said["text"].split()) not in flat:
                found.append(f"{name} wants in {said['page']}: {said['text']}")
            found += [f"{name} has no cell {cell!r}" for cell in said["cells"] if cell not in cells]
            exact = [
                float(one) for cell in said["cells"] for one in re.findall(r"\d+(?:\.\d+)?", cell.replace(",", ""))
            ]
            for number in re.findall(r"\d+(?:\.\d+)?", said["text"]):
                digits = len(number.partition(".")[2])
                if not any(abs(one - float(number)) <= 0.5 * 10**-digits + 1e-9 for one in exact):
                    found.append(f"{name}: {number} in {said['text']!r} is no rounding of {said['cells']}")
    return found


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            new = draw(page, text)
        except ValueError as error:
            sys.exit(f"Error: {error}")
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
