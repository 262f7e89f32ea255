"""Spherical harmonics, radial basis and cutoff envelope of edge vectors."""
