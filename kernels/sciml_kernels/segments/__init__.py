"""Sums over segments of sorted rows, and projections on conserved totals of each segment."""
