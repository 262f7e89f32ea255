"""High-energy physics: jets as sets of particles in a Lorentz-invariant frame."""
