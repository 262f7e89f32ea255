"""From the words on the command line to one checked configuration, without importing torch.

Hydra composes ``configs/VERB.yaml`` with its groups, pydantic checks the result against :mod:`sciml.schema`, and every
error of either becomes one sentence that names the key, what was found and what was expected.
"""

from sciml.config.compose import check_inputs, compose, configure, to_yaml, validate
from sciml.config.keys import FREE_KEYS, configs_folder, default_of, groups, keys, type_name

__all__ = [
    "FREE_KEYS",
    "check_inputs",
    "compose",
    "configs_folder",
    "configure",
    "default_of",
    "groups",
    "keys",
    "to_yaml",
    "type_name",
    "validate",
]
