"""Reading, converting and writing networks. Files never run code, whatever they are."""

from fastinv.checkpoints.load import load_discriminator, load_encoder, load_generator, open_checkpoint
from fastinv.checkpoints.network import CheckpointWarning
from fastinv.checkpoints.registry import BUNDLED, BundledModel
from fastinv.checkpoints.save import network_hash, save_network

__all__ = [
    "BUNDLED",
    "BundledModel",
    "CheckpointWarning",
    "load_discriminator",
    "load_encoder",
    "load_generator",
    "network_hash",
    "open_checkpoint",
    "save_network",
]
