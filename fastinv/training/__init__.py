"""Training of the networks; each module is also a command, ``python -m fastinv.training.generator --help``."""
