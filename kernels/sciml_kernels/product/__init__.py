"""The node-wise equivariant product."""
