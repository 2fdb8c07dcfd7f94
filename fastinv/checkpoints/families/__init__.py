"""One module for each family of checkpoints: what its files look like as data, its tensors under our names.

Each has ``NAME``, ``recognises(value)`` and ``networks(value)``, see `fastinv.checkpoints.load`.
"""
