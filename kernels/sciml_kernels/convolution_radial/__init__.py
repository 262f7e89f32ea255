"""The equivariant convolution with the last layer of the radial network inside."""
