"""Equivariant operations for force training: one spec, a plain-torch definition, generated kernels to second order."""

from sciml_kernels.convolution.op import conv
from sciml_kernels.convolution_radial.op import conv_radial
from sciml_kernels.coulomb_pairs.op import coulomb_pairs
from sciml_kernels.edge_embedding.op import EdgeEmbedding, edge_embedding, spherical_harmonics
from sciml_kernels.edges import Edges
from sciml_kernels.interop import channel_major, component_major, from_e3nn
from sciml_kernels.layers.op import degree_linear, degree_norm, gate, silu
from sciml_kernels.neighbors.op import Neighbors, neighbor_list
from sciml_kernels.pair_features.op import all_pairs, pair_features
from sciml_kernels.product.op import product
from sciml_kernels.product.symmetric import symmetric_contraction
from sciml_kernels.product.symmetric_spec import SymmetricSpec
from sciml_kernels.radial_network.op import radial_network
from sciml_kernels.segments.op import (
    project_charge,
    remove_net_force,
    remove_net_force_and_torque,
    segment_expand,
    segment_pointers,
    segment_sum,
)
from sciml_kernels.structure_factors.ewald import Waves, ewald_reciprocal_energy, half_space
from sciml_kernels.structure_factors.op import structure_factors
from sciml_kernels.trilinear.spec import Path, Spec

__all__ = [
    "EdgeEmbedding",
    "Edges",
    "Neighbors",
    "Path",
    "Spec",
    "SymmetricSpec",
    "Waves",
    "all_pairs",
    "channel_major",
    "component_major",
    "conv",
    "conv_radial",
    "coulomb_pairs",
    "degree_linear",
    "degree_norm",
    "edge_embedding",
    "ewald_reciprocal_energy",
    "from_e3nn",
    "gate",
    "half_space",
    "neighbor_list",
    "pair_features",
    "product",
    "project_charge",
    "radial_network",
    "remove_net_force",
    "remove_net_force_and_torque",
    "segment_expand",
    "segment_pointers",
    "segment_sum",
    "silu",
    "spherical_harmonics",
    "structure_factors",
    "symmetric_contraction",
]
