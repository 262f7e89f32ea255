"""The equivariant convolution over the edges of a graph."""
