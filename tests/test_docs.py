"""The README can be read at a glance, and what the docs link to is there."""

import re
from pathlib import Path

import pytest

from srpo_recipe.settings.run import RunConfig
from srpo_recipe.settings.schema import SRPOConfig, TeacherConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page):
    for found in LINK.finditer(page.read_text()):
        target = next(filter(None, found.groups()))
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in headings(place), f"{page.name}: {target}"


def test_every_knob_stands_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    of_tables = set(re.findall(r"`((?:srpo|run)\.[\w.*]+)`", text))
    wanted = {f"srpo.{name}" for name in SRPOConfig.__dataclass_fields__}
    wanted |= {f"srpo.teacher.{name}" for name in TeacherConfig.__dataclass_fields__}
    wanted |= {f"run.{name}" for name in RunConfig.__dataclass_fields__}
    wanted -= {
        "srpo.teacher",
        "srpo.verifier",
        "run.overridden",
    }  # their parts stand there; the last is filled in by ours
    assert wanted - of_tables == set()
