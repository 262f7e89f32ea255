"""Evaluation: predictions of a model on stores, metrics, and the report."""
