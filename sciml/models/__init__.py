"""The equivariant backbone and its layers."""
