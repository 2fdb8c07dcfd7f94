"""StyleGAN in TensorFlow (NVlabs), and IDInvert's training files: pickles of (G, D, Gs) or (E, G, D, Gs).

The networks are ``dnnlib.tflib.network.Network`` as for StyleGAN2. What is left to do once tensors have our names is
the same for every file with such a generator: `generator` does that, and the other families with one call it.
"""

import re
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import ada, tensorflow
from fastinv.checkpoints.network import Network
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError

NAME = "StyleGAN (TensorFlow)"
MARK = "synthesis/4x4/Const/StyleMod/weight"
VERSIONS = (2, 3, 4)
FUSED_FROM = 128  # the resolution from which the published networks up-sample by a transposed convolution
DEFAULT_LR_MULTIPLIER = 0.01
# TensorFlow's names of a block's layers, and of a layer's variables -> ours
LAYERS = {"Conv0_up": "conv0", "Conv1": "conv1"}
LAYERS_4 = {"Const": "conv0", "Conv": "conv1"}
PARTS = {
    "weight": "weight",
    "bias": "bias",
    "Noise/weight": "noise_strength",
    "StyleMod/weight": "affine.weight",
    "StyleMod/bias": "affine.bias",
}
# Choices that change pictures but no shape, with the only one that our class has
OPTIONS = {
    "nonlinearity": "lrelu",
    "mapping_nonlinearity": "lrelu",
    "normalize_latents": True,
    "use_wscale": True,
    "mapping_use_wscale": True,
    "use_pixel_norm": False,
    "use_instance_norm": True,
    "blur_filter": [1, 2, 1],
}
UNUSED = re.compile(r"(synthesis/)?lod|synthesis/ToRGB_lod[1-9]\d?/(weight|bias)")  # progressive growing needed them


def recognises(value) -> bool:
    """Whether this is (G, D, Gs) or (E, G, D, Gs) of StyleGAN, or one such generator: v2 has no ``StyleMod``."""
    return any(name == MARK for name, _ in tensorflow.variables(_averaged(value)))


def networks(value) -> dict[str, Callable[[], Network]]:
    """Gs, the averaged generator, read when called."""
    return {"generator": lambda: _read(_averaged(value))}


def generator(
    tensors: dict[str, torch.Tensor],
    mapping_lr_multiplier: float = DEFAULT_LR_MULTIPLIER,
    lod=None,
    extra: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Network:
    """A StyleGAN generator from tensors under our names.

    Args:
        tensors: name -> tensor, as in the state dict of ``fastinv.models.stylegan1.StyleGAN1Generator``, but toRGB is
            ``synthesis.torgb.*``, without its block.
        mapping_lr_multiplier: what tensors do not tell.
        lod: the level of detail that the file states, a number or a tensor of one; above 0 while the network grows.
        extra, notes: for the Network.

    Raises:
        CheckpointError: blocks or layers are missing or odd.
    """
    matches = [re.fullmatch(r"synthesis\.b(\d{1,5})\.conv1\.bias", name) for name in tensors]
    resolutions = sorted(int(match[1]) for match in matches if match)
    if len(resolutions) < 2 or resolutions != [4 << i for i in range(len(resolutions))]:
        raise CheckpointError(
            f"it has layers for the resolutions {resolutions[:12]}; StyleGAN has at least 4 and 8, and no gaps"
        )
    affine = "synthesis.b4.conv0.affine.weight"
    for name in ("mapping.fc0.weight", affine):
        if name not in tensors or tensors[name].ndim != 2:
            raise CheckpointError(f"the matrix {name} is missing")
    num_ws, w_dim = 2 * len(resolutions), tensors[affine].shape[1]
    depth = next(i for i in range(len(tensors) + 1) if f"mapping.fc{i}.weight" not in tensors)
    # IDInvert's mapping network has an output for every style input, and its pictures go through a tanh.
    idinvert = len(tensors[f"mapping.fc{depth - 1}.weight"]) == num_ws * w_dim
    config = {
        "resolution": resolutions[-1],
        "z_dim": tensors["mapping.fc0.weight"].shape[1],
        "w_dim": w_dim,
        "channels": {r: tensors[f"synthesis.b{r}.conv1.bias"].numel() for r in resolutions},
        "mapping_layers": depth,
        "mapping_lr_multiplier": mapping_lr_multiplier,
        "mapping_outputs": "w+" if idinvert else "w",
        "final_tanh": idinvert,
    }
    last = f"synthesis.b{resolutions[-1]}.torgb."
    tensors = {name.replace("synthesis.torgb.", last): tensor for name, tensor in tensors.items()}
    lod = lod.item() if isinstance(lod, torch.Tensor) and lod.numel() == 1 else lod
    if isinstance(lod, (int, float)) and lod > 0:
        notes += (f"it was saved while it still grew (level of detail {lod:.3g}); only its last toRGB is used",)
    return Network("generator", "stylegan1", config, tensors, tuple(extra), tuple(notes))


def layer(index: int) -> str:
    """Our name of the layer that takes this style input: b4.conv0, b4.conv1, b8.conv0, ..."""
    return f"b{4 << index // 2}.conv{index % 2}"


def _averaged(value):
    """Gs of a tuple of networks, or the value itself."""
    return value[-1] if isinstance(value, (tuple, list)) and len(value) in (3, 4) else value


def _read(network: Record) -> Network:
    version = network.state.get("version")
    if not isinstance(version, int) or version not in VERSIONS:
        shown = version if isinstance(version, int) and abs(version) < 10**9 else type(version).__name__
        raise CheckpointError(f"it is a TensorFlow network of version {shown}; only 2, 3 and 4 are supported")
    options = _options(network)
    tensors, extra, lod = {}, [], None
    for name, value in tensorflow.variables(network):
        if name.startswith("mapping/LabelConcat/"):
            raise CheckpointError("it is a conditional StyleGAN generator; only unconditional ones are supported")
        ours = _our_name(name)
        if name == "synthesis/lod":
            lod = value
        elif ours is not None and isinstance(value, torch.Tensor):
            tensors[ours] = _our_layout(ours, value, options["fused_scale"])
        elif not UNUSED.fullmatch(name):
            extra.append(name)
    return generator(tensors, options["mapping_lrmul"], lod, tuple(extra))


def _our_name(name: str) -> str | None:
    if name == "dlatent_avg":
        return "mapping.w_avg"
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"mapping/Dense(\d{1,3})/(weight|bias)", name):
        return f"mapping.fc{int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"synthesis/noise(\d{1,2})", name):
        return f"synthesis.{layer(int(match[1]))}.noise_const"
    if match := re.fullmatch(r"synthesis/ToRGB_lod0/(weight|bias)", name):
        return f"synthesis.torgb.{match[1]}"
    if match := re.fullmatch(r"synthesis/(\d{1,5})x\1/(\w+)/([\w/]+)", name):
        ours = (LAYERS_4 if match[1] == "4" else LAYERS).get(match[2])
        return f"synthesis.b{match[1]}.{ours}.{PARTS[match[3]]}" if ours and match[3] in PARTS else None
    return None


def _our_layout(ours: str, value: torch.Tensor, fused_scale) -> torch.Tensor:
    """A variable in the layout of our tensor of this name, as a view where that can be."""
    if ours == "synthesis.b4.const":
        return value[0]
    if ours.endswith(".noise_const"):
        return value[0, 0]
    if value.ndim == 4:  # [height, width, in, out]
        value = value.permute(3, 2, 0, 1)
        match = re.fullmatch(r"synthesis\.b(\d+)\.conv0\.weight", ours)
        fused = match and (int(match[1]) >= FUSED_FROM if fused_scale == "auto" else fused_scale)
        return value.flip(2, 3) if fused else value  # the other way round for a transposed convolution
    return value.t() if value.ndim == 2 else value


def _options(network: Record) -> dict:
    """``mapping_lrmul`` and ``fused_scale`` that the networks were built with; refuses what our class does not have."""
    options = {}
    components = network.state.get("components")
    for part in [network, *(components.values() if isinstance(components, dict) else ())]:
        stated = part.state.get("static_kwargs") if isinstance(part, Record) else None
        options |= stated if isinstance(stated, dict) else {}
    for name, expected in OPTIONS.items():
        if not _equal(options.get(name, expected), expected):
            raise CheckpointError(f"its {name} is not {expected!r}, the only choice that is supported")
    fused_scale = options.get("fused_scale", "auto")
    if not isinstance(fused_scale, bool) and not _equal(fused_scale, "auto"):
        raise CheckpointError("its fused_scale is neither 'auto' nor true or false")
    lr_multiplier = ada.number(options.get("mapping_lrmul", DEFAULT_LR_MULTIPLIER), "mapping_lrmul", 1e-9, 1e9)
    return {"mapping_lrmul": lr_multiplier, "fused_scale": fused_scale}


def _equal(value, expected) -> bool:
    """Equality of plain values; False for everything else, which might compare in surprising ways."""
    if isinstance(expected, list):
        same_length = isinstance(value, (list, tuple)) and len(value) == len(expected)
        return same_length and all(_equal(*pair) for pair in zip(value, expected))
    return isinstance(value, (str, bool, int, float)) and value == expected
