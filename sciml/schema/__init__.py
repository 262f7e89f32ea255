"""Every key that a configuration may have: its type, its range and its explanation.

There are no default values here: the YAML files under ``configs/`` hold each default once. The descriptions feed
``sciml VERB --help``. A combination of keys that cannot work is refused by the validators at the end of each class,
which name the key in the form ``trainer.devices: found 2, expected ...``.

``train.py`` has the keys of ``sciml train``, whose sections are in files named after them; ``evaluate.py`` and
``ingest.py`` have those of the other verbs, ``section.py`` the types that all of them share.
"""

from sciml.schema.evaluate import EvaluateConfig, VerifyConfig
from sciml.schema.ingest import AuditConfig, HeatConfig, IngestConfig, InspectConfig, SplitConfig
from sciml.schema.section import KINDS, SAMPLE_PREFIX, SAMPLES, Section
from sciml.schema.train import DoctorConfig, TrainConfig
from sciml.schema.trainer import seconds

__all__ = [
    "CONFIGS",
    "KINDS",
    "SAMPLES",
    "SAMPLE_PREFIX",
    "AuditConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "HeatConfig",
    "IngestConfig",
    "InspectConfig",
    "Section",
    "SplitConfig",
    "TrainConfig",
    "VerifyConfig",
    "seconds",
]

CONFIGS: dict[str, type[Section]] = {
    "ingest": IngestConfig,
    "inspect": InspectConfig,
    "audit": AuditConfig,
    "split": SplitConfig,
    "heat": HeatConfig,
    "train": TrainConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "verify": VerifyConfig,
}
