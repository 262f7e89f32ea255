"""Imports point downward only, those inside functions included; the kernels import nothing of sciml."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS: tuple[set[str], ...] = (
    {"__main__"},
    {"cli"},
    {"sweep"},
    {"doctor"},
    {"verbs"},
    {"build"},
    {"ingest", "train", "evaluate", "export", "loop"},
    {"package"},
    {"domains"},
    {"objectives"},
    {"models"},
    {"physics"},
    {"data"},
    {"graph", "units", "irreps", "registry", "errors", "files", "launch", "combinations", "config", "schema"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(path for path in (ROOT / "sciml").rglob("*.py") if path != ROOT / "sciml" / "__init__.py")


def imported(path: Path, package: str) -> list[tuple[int, str]]:
    """Return (line, dotted name) of every import in a file that reaches into ``package``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full, not relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == package else [node.module]
            found += [(node.lineno, name or "") for name in names]
    return [(line, name) for line, name in found if name.split(".")[0] == package]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    own = path.relative_to(ROOT / "sciml").with_suffix("").parts[0]
    assert own in RANK, f"sciml.{own} has no place in the layers; give it one here"
    for line, name in imported(path, "sciml"):
        target = [*name.split("."), ""][1]
        if target in RANK:
            assert RANK[target] >= RANK[own], f"{path.name}:{line}: sciml.{own} imports {name}, which lies above it"


def test_kernels_import_nothing_of_sciml() -> None:
    files = sorted((ROOT / "kernels").rglob("*.py"))
    assert files
    for path in files:
        assert imported(path, "sciml") == [], path


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without ``__init__.py`` would be missing from the wheel."""
    for root in (ROOT / "sciml", ROOT / "kernels" / "sciml_kernels"):
        for folder in {path.parent for path in root.rglob("*.py")}:
            assert (folder / "__init__.py").is_file(), f"{folder} lacks __init__.py"
