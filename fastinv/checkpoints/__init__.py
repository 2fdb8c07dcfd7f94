"""Reading and writing networks. Files never run code: only safetensors is read so far."""

from fastinv.checkpoints.native import load_discriminator, load_generator, network_hash, save_network
from fastinv.checkpoints.registry import BUNDLED, BundledModel

__all__ = ["BUNDLED", "BundledModel", "load_discriminator", "load_generator", "network_hash", "save_network"]
