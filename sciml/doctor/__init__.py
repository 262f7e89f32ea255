"""What would go wrong, said before hours are spent: the machine, the data, the recipe, and the faults of a long run."""
