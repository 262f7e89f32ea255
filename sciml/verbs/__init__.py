"""The verbs that put a configuration, data and a model together: ``train``, ``evaluate`` and ``verify``, a file each.

The others work on one thing and are beside it: ``ingest``, ``inspect``, ``audit``, ``split`` and ``heat`` in
:mod:`sciml.ingest`, ``doctor`` in :mod:`sciml.doctor`. ``VERBS`` in :mod:`sciml.cli` names the function of every verb.
"""
