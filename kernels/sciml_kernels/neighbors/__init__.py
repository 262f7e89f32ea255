"""Neighbour lists of batches of systems."""
