"""The network of distances: hidden layers of an edge, from its radial basis to what a convolution maps to weights."""
