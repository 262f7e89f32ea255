"""Faults that a long training meets, made on purpose in real processes: one function ``fault_NN_name`` per fault."""
