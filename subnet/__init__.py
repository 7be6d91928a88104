"""IOTA: strangers with one GPU each pretrain one language model together, paid per verified piece of work."""

__version__ = "0.1.0"
