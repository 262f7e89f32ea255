"""Interaction of pairs of Gaussian charges, without the smooth part of an Ewald sum."""
