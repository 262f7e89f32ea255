"""Minkowski features of pairs of four-momenta."""
