"""From foreign files to stores: readers, checks, splits and summaries."""
