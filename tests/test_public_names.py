"""What is public is said in `__all__`, has a docstring, and stands in the reference."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import eslkit
import eslkit_tsdn

ROOT = Path(__file__).parents[1]


def modules_of(package: object) -> list[str]:
    """The names of all modules of a package without a leading underscore, itself included."""
    name: str = package.__name__  # type: ignore[attr-defined]
    found = pkgutil.walk_packages(package.__path__, name + ".")  # type: ignore[attr-defined]
    return [name, *(info.name for info in found if "._" not in info.name)]


MODULES = [*modules_of(eslkit), *modules_of(eslkit_tsdn)]


def reference_entries() -> set[str]:
    """Everything that a page of the reference asks mkdocstrings to describe."""
    pages = (ROOT / "docs" / "reference").rglob("*.md")
    return {
        entry
        for page in pages
        for entry in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
    }


def public_names(name: str) -> list[str]:
    """`__all__` of a module; none for a package that only holds modules."""
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [] if hasattr(module, "__path__") else None)
    assert public is not None, f"{name} has no __all__; a module that is not public is named _x"
    return list(public)


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_is_there_once(name: str) -> None:
    """That the names are sorted is ruff's to say (RUF022)."""
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    public = public_names(name)
    assert len(public) == len(set(public)), f"{name}.__all__ names something twice: {public}"
    missing = [entry for entry in public if not hasattr(module, entry)]
    assert not missing, f"{name}.__all__ names {missing}, which {name} has not"


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    bare = [
        entry
        for entry in public_names(name)
        if (inspect.isclass(value := getattr(module, entry)) or inspect.isfunction(value))
        and not (value.__doc__ or "").strip()
    ]
    assert not bare, f"{name}: no docstring on {bare}"


@pytest.mark.parametrize("name", MODULES)
def test_public_names_stand_in_the_reference(name: str) -> None:
    entries = reference_entries()
    missing = [entry for entry in public_names(name) if not {name, f"{name}.{entry}"} & entries]
    assert not missing, f"docs/reference: no page describes {missing} of {name}; add `::: {name}`"


def test_the_reference_names_nothing_that_is_gone() -> None:
    for entry in sorted(reference_entries()):
        owner, _, attribute = entry.rpartition(".")
        assert entry in MODULES or hasattr(importlib.import_module(owner), attribute), entry


def test_the_root_names_what_it_offers_one_by_one() -> None:
    """`eslkit.X` is the one import path: a literal list of names, and no star import."""
    tree = ast.parse(inspect.getsource(eslkit))
    stars = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars
    [value] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and "__all__" in ast.unparse(node).split("=")[0]
    ]
    assert isinstance(value, ast.List), "eslkit.__all__ is written out, not computed"
    assert ast.literal_eval(value) == eslkit.__all__
