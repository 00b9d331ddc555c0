"""``dithead-train prepare --shards``: from any number of videos to shards for training.

``lists`` says which parts of which videos, ``shots`` finds what is usable in one part, ``samples``
makes its files, ``run`` does so for all parts and packs them (``ledger``, ``pack``), on processes
or a Ray cluster (``ray``). ``store`` and ``stream`` read the shards again.
"""
