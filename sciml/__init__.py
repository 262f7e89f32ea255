"""sciml: physics-informed foundation models for atoms, jets and proteins."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Graph", "Store", "calculator", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``sciml --help`` does not pay for torch."""
    if name == "load":
        from sciml.package import load

        return load
    if name == "calculator":
        from sciml.export.ase import calculator

        return calculator
    if name == "Graph":
        from sciml.graph import Graph

        return Graph
    if name == "Store":
        from sciml.data.store import Store

        return Store
    raise AttributeError(f"module 'sciml' has no attribute {name!r}")
