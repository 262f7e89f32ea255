"""Molecules, crystals and surfaces: energies, forces and stress."""
