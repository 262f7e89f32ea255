"""``sciml verify``: which physical laws a model obeys, measured on random and on real inputs.

``certificate`` names the laws and holds the rows; ``probe`` is the model with the systems it is asked about; one module
per group of laws measures them; ``page`` shows the result.
"""
