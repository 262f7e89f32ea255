"""Training: one Lightning module for pretraining and fine-tuning alike."""
