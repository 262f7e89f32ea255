"""Layers of an equivariant network: norm, linear map per degree, gate, SiLU."""
