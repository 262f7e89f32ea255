"""Structure factors of periodic systems and the reciprocal part of Ewald sums."""
