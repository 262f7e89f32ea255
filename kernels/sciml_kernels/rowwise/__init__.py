"""Functions that act on each row alone: from one symbolic definition to compiled code of every derivative."""
