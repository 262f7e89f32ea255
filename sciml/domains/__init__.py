"""Scientific domains: materials, hep and biology, each the same three files (graphs, heads, metrics)."""
