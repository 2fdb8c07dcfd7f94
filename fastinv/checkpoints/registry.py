"""The models that come with the package (public checkpoints to download join them later)."""

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class BundledModel:
    """A generator shipped in the wheel, with its discriminator."""

    name: str
    description: str
    resolution: int
    licence: str

    @property
    def generator(self) -> Path:
        """Path of the generator's safetensors file."""
        return WEIGHTS / f"{self.name}.generator.safetensors"

    @property
    def discriminator(self) -> Path:
        """Path of the discriminator's safetensors file."""
        return WEIGHTS / f"{self.name}.discriminator.safetensors"


BUNDLED = {
    model.name: model
    for model in [BundledModel("faces64", "procedural faces, trained by `fastinv train generator`", 64, "Apache-2.0")]
}
DEFAULT = "faces64"
