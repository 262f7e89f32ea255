"""Equivariant trilinear operations for force training: one spec, a plain-torch definition, generated kernels."""

from sciml_kernels.edges import Edges
from sciml_kernels.ops import conv, product
from sciml_kernels.spec import Path, Spec

__all__ = ["Edges", "Path", "Spec", "conv", "product"]
