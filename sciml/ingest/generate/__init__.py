"""New data from real engines: each module yields Records from one engine, reproducibly from a seed.

Energies and forces of molecules from GFN2-xTB (``xtb``), of silicon from GFN1-xTB (``silicon``), of lithium from a
classical potential (``classical``), of metals from effective-medium theory (``emt``), jets from Pythia 8 in a process
of its own (``jets``), peptides from Amber (``peptides``), folded backbones of made-up proteins (``backbones``). The
engines that are not dependencies of sciml come with the ``generate`` extra.
"""
