"""The pages that are made from the code are as the code says."""

import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

import srpo_recipe.method

DOCS = Path(__file__).parent.parent / "docs"
MADE = runpy.run_path(str(DOCS / "make.py"))
PAGES = {"metrics.md": "metrics_page", "api.md": "api_page"}


@pytest.mark.parametrize("name, function", PAGES.items())
def test_a_page_is_as_the_code_says(name, function):
    assert (DOCS / name).read_text() == MADE[function](), f"python docs/make.py writes docs/{name} anew"


def test_every_page_that_says_it_is_made_is_checked():
    assert {path.name for path in DOCS.glob("*.md") if "made by docs/make.py" in path.read_text()} == set(PAGES)


# ------------------------------------------------------------------------------------------ the functions of the method


MEMBERS = [
    (module, name, member)
    for module in MADE["MODULES"]
    for name, member in MADE["public"](importlib.import_module(f"srpo_recipe.method.{module}"))
]


def missing(name: str, member, neighbours: dict[str, str]) -> list[str]:
    """What a docstring does not say of its function: parameters, errors. neighbours: the docstrings of its module by name.

    "The arguments are those of `other`" takes the other's docstring along.
    """
    doc = inspect.getdoc(member) or ""
    for other in re.findall(r"(?:those\s+of|as\s+in) `(\w+)`", doc):
        doc += "".join(text for title, text in neighbours.items() if title.rpartition(".")[2] == other)
    function = member.fget if isinstance(member, property) else member
    parameters = [one for one in inspect.signature(function).parameters if one not in ("self", "cls")]
    errors = [] if inspect.isclass(member) else re.findall(r"raise (\w+)", inspect.getsource(function))
    found = [f"{one} of {name}" for one in parameters if not re.search(rf"\b{one}\b", doc)]
    return found + [f"{error} of {name}" for error in errors if f"Raises {error}" not in doc]


@pytest.mark.parametrize("module", MADE["MODULES"])
def test_docstrings_name_every_parameter_and_every_error(module):
    docs = {name: inspect.getdoc(member) or "" for place, name, member in MEMBERS if place == module}
    assert all(docs.values()), docs
    members = [(name, member) for place, name, member in MEMBERS if place == module]
    assert [one for name, member in members for one in missing(name, member, docs)] == []


@pytest.mark.parametrize("module", MADE["MODULES"])
def test_docstrings_say_what_shape_a_tensor_has_by_its_name_or_in_words(module):
    """A tensor's name ends in its shape; where it does not, the docstring says which shapes there are."""
    for place, name, member in MEMBERS:
        if place != module or isinstance(member, property):
            continue
        tensors = [key for key, one in inspect.signature(member).parameters.items() if one.annotation is torch.Tensor]
        plain = [key for key in tensors if not re.search(r"_[BTKVNMCH1]+$", key)]
        said = "shape" in (inspect.getdoc(member) or "")
        assert not plain or said or name == "Totals.from_tensor", f"{name}: {plain}"


def test_every_module_of_the_method_is_on_the_page():
    assert set(MADE["MODULES"]) == {found.name for found in pkgutil.iter_modules(srpo_recipe.method.__path__)}
    assert len(MEMBERS) > 40


def test_what_a_docstring_leaves_out_is_found():
    def function(one, two):
        """one: a number. Raises KeyError."""
        raise ValueError

    assert missing("function", function, {}) == ["two of function", "ValueError of function"]
    function.__doc__ = "Raises ValueError. The arguments are those of `other`."
    assert missing("function", function, {"A.other": "one and two"}) == []
