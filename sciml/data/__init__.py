"""Stores, neighbour lists and the batch plan: everything between files on disk and graphs."""
