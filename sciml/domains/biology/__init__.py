"""Proteins and peptides: all-atom energies and forces, and residue types from the backbone."""
