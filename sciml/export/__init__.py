"""Running a published model elsewhere."""
