"""What the convolution and the product share: the spec, the generator of every derivative, and its two emitters."""
