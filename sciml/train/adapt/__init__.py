"""Fine-tuning: how a base model takes up new data, and what it keeps of what it knew."""
