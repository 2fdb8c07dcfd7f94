"""The attribute network: reads every attribute of a procedural portrait (fastinv.data.faces) from its pixels.

It serves three ends without network access: attribute errors of inversions and edits, an embedding for Fréchet
distances and identity, and feature maps for a perceptual loss. For the last one it is smooth in its input: SiLU
activations, mean pooling instead of strides, and no normalisation layers (the batch normalisation of the training is
folded into the weights).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinv.data.faces import NAMES
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import load_tensors, shown

WEIGHTS = Path(__file__).parents[1] / "weights" / "attributes.safetensors"
KIND = "attribute network"  # of a file
CHANNELS = (16, 48, 96, 160, 128)  # of the stages at 64, 32, 16, 8 and 4 pixels


class AttributeNetwork(nn.Module):
    """Convolutional regressor, pictures [n, 3, 64, 64] in [-1, 1] -> {name: [n]} in the attributes' own units.

    Args:
        channels: of the stages at 64, 32, 16, 8 and 4 pixels.
        embedding: size of the layer before the last.
        batch_norm: normalise after every convolution; for training only, ``fold()`` gives the plain network.

    Buffers ``means`` and ``stds`` [len(NAMES)]: of the attributes' distribution; the last layer predicts standardised
    attributes.
    """

    resolution = 64

    def __init__(self, channels: tuple[int, ...] = CHANNELS, embedding: int = 96, batch_norm: bool = False):
        super().__init__()
        self.config = {"channels": list(channels), "embedding": embedding}
        c64, c32, c16, c8, c4 = channels
        convolutions = [(3, c64), (c64, c32), (c32, c32), (c32, c16), (c16, c16), (c16, c8), (c8, c8), (c8, c4)]
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in convolutions)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in convolutions) if batch_norm else None
        self.hidden = nn.Linear(c4 * 4 * 4, embedding)
        self.output = nn.Linear(embedding, len(NAMES))
        self.register_buffer("means", torch.zeros(len(NAMES)))
        self.register_buffer("stds", torch.ones(len(NAMES)))

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the stages, early to late, each before its down-sampling: 64, 32, 16, 8 and 4 pixels wide.

        images [n, 3, h, w] in [-1, 1]; sizes other than 64x64 are resized first (mean over blocks where the size is a
        multiple of 64, else bilinear with anti-aliasing).
        """
        x = self._resize(images)
        maps = []
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = F.silu(x if self.norms is None else self.norms[index](x))
            if index in (0, 2, 4, 6, 7):  # the last convolution of a stage
                maps.append(x)
                x = F.avg_pool2d(x, 2)
        return maps

    def embedding(self, images: Tensor) -> Tensor:
        """Activations [n, d] of the layer before the last, for Fréchet distances and identity."""
        return F.silu(self.hidden(self.features(images)[-1].flatten(1)))

    def standardised(self, images: Tensor) -> Tensor:
        """(attribute - mean) / standard deviation, [n, len(NAMES)] in the order of faces.NAMES."""
        return self.output(self.embedding(images))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = self.standardised(images) * self.stds + self.means
        return dict(zip(NAMES, values.unbind(1), strict=True))

    def fold(self) -> "AttributeNetwork":
        """The same function without normalisation layers: running statistics and scales go into the convolutions."""
        plain = AttributeNetwork(tuple(self.config["channels"]), self.config["embedding"])
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("norms.")}
        for index, norm in enumerate(self.norms or ()):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight, bias = f"convolutions.{index}.weight", f"convolutions.{index}.bias"
            state[weight] = state[weight] * scale.view(-1, 1, 1, 1)
            state[bias] = (state[bias] - norm.running_mean) * scale + norm.bias
        plain.load_state_dict({name: tensor.detach() for name, tensor in state.items()})
        return plain.eval()

    def _resize(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(
                f"images have shape {tuple(images.shape)}; the attribute network takes [n, 3, height, width]"
            )
        height, width = images.shape[2:]
        if (height, width) == (self.resolution, self.resolution):
            return images
        if height % self.resolution == 0 and width % self.resolution == 0:
            return F.avg_pool2d(images, (height // self.resolution, width // self.resolution))
        size = (self.resolution, self.resolution)
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def load_attribute_network(path: str | Path | None = None, device=None, dtype=None) -> AttributeNetwork:
    """The shipped attribute network (or the one in the safetensors file `path`), in eval mode, without gradients.

    Args:
        path: a file that ``python -m fastinv.training.attributes`` wrote; None is the shipped one.
        device: where to put it; None is the CPU.
        dtype: its arithmetic; None is float32 (the file stores half precision).

    Raises:
        CheckpointError: no such file, or not an attribute network, or made for other attributes.
    """
    path = WEIGHTS if path is None else Path(path)
    tensors, facts = load_tensors(path, KIND)
    if facts.get("names") != list(NAMES):
        raise CheckpointError(f"{shown(path)} was trained for other attributes; train it again for {', '.join(NAMES)}")
    try:
        network = AttributeNetwork(**facts["config"])
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{shown(path)} does not fit its own configuration; the file is damaged") from error
    return network.eval().requires_grad_(False).to(device=device, dtype=dtype)
