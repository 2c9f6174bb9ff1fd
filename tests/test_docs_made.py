"""The pages that are made from the code are as the code says."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {"metrics.md": "metrics_page"}


@pytest.mark.parametrize("name, function", PAGES.items())
def test_a_page_is_as_the_code_says(name, function):
    made = runpy.run_path(str(DOCS / "make.py"))[function]()
    assert (DOCS / name).read_text() == made, f"python docs/make.py writes docs/{name} anew"


def test_every_page_that_says_it_is_made_is_checked():
    assert {path.name for path in DOCS.glob("*.md") if "made by docs/make.py" in path.read_text()} == set(PAGES)
