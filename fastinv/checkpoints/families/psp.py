"""pSp, e4e, ReStyle and HyperStyle (.pt): a dict of ``state_dict``, ``latent_avg`` and ``opts``.

``encoder.*`` has the names of our encoders, ``decoder.*`` is a generator under rosinality's names. Architecture and
sizes come from tensors. What tensors cannot tell comes from ``opts``: whether heads give styles (pSp) or offsets from
the first (e4e), whether the mean latent is added, and whether pictures are of cars.
"""

import itertools
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import rosinality
from fastinv.checkpoints.network import Network
from fastinv.errors import CheckpointError

NAME = "pSp, e4e, ReStyle or HyperStyle"
PARTS = ("encoder.", "decoder.", "hypernet.")
# Values of opts["encoder_type"] for encoders with a head per style; the others are told by their tensors.
PSP_TYPES = ("GradualStyleEncoder", "ResNetGradualStyleEncoder", "BackboneEncoder", "ResNetBackboneEncoder")
E4E_TYPES = ("Encoder4Editing", "ProgressiveBackboneEncoder", "ResNetProgressiveBackboneEncoder")
E4E_OPTIONS = ("progressive_start", "progressive_step_every", "w_discriminator_lambda", "delta_norm")
CAR_ROWS = (32, 224)  # of 256: cars are 4:3, with black bars above and below (from memory)
DEFAULT_RESOLUTION = 256


def recognises(value) -> bool:
    """Whether this is a dict with a ``state_dict`` of an encoder, a decoder or a hypernetwork."""
    return bool(_found_parts(value))


def networks(value) -> dict[str, Callable[[], Network]]:
    """The encoder, and the generator that it was trained for, read when called."""
    parts, found = _found_parts(value), {}
    if "encoder." in parts:
        found["encoder"] = lambda: _encoder(value)
    if "decoder." in parts:
        found["generator"] = lambda: _generator(value)
    return found


def _found_parts(value) -> set[str]:
    state = value.get("state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict):
        return set()
    return {part for part in PARTS for name in state if isinstance(name, str) and name.startswith(part)}


def _part(value: dict, part: str) -> dict[str, torch.Tensor]:
    """The tensors of a part, without its prefix."""
    state = value["state_dict"]
    return {
        name.removeprefix(part): tensor
        for name, tensor in state.items()
        if isinstance(name, str) and name.startswith(part) and isinstance(tensor, torch.Tensor)
    }


def _count(tensors: dict, pattern: str, step: int = 1) -> int:
    """How many of pattern.format(0), pattern.format(step), ... there are."""
    return next(index for index in itertools.count() if pattern.format(step * index) not in tensors)


def _options(value: dict) -> dict:
    options = value.get("opts")
    return options if isinstance(options, dict) else {}


def _generator(value: dict) -> Network:
    notes = ("its hypernetwork (hypernet.*) is not read; this is the generator that HyperStyle adapts",)
    notes = notes if "hypernet." in _found_parts(value) else ()
    return rosinality.generator(_part(value, "decoder."), value.get("latent_avg"), notes)


def _encoder(value: dict) -> Network:
    tensors, options = _part(value, "encoder."), _options(value)
    config, notes = _body(tensors), []
    heads = _count(tensors, "styles.{}.linear.weight")
    if heads:
        halvings = _count(tensors, "styles.0.convs.{}.weight", step=2)  # activations have the odd numbers
        progressive, note = _progressive(options)
        notes += [note] if note else []
        iterative = config["input_nc"] == 6
        model = ("restyle_e4e" if progressive else "restyle_psp") if iterative else ("e4e" if progressive else "psp")
        config |= {
            "num_ws": heads,
            "w_dim": tensors["styles.0.linear.weight"].shape[0],
            "input_resolution": 1 << halvings + len(config["units"]),
            "pyramid": "latlayer1.weight" in tensors,
        }
    else:
        iterative = False
        config["input_resolution"] = DEFAULT_RESOLUTION
        if "output_layer_2.3.weight" in tensors:
            model, config["w_dim"] = "w_plus_encoder", tensors["output_layer_2.3.weight"].shape[0]
            config["num_ws"] = tensors["linear.weight"].shape[0] // config["w_dim"]
        elif "linear.weight" in tensors:
            model, config["w_dim"] = "w_encoder", tensors["linear.weight"].shape[0]
            config["num_ws"] = _styles_of_generator(value)
        else:
            raise CheckpointError("its encoder has neither heads (encoder.styles.*) nor a last layer (encoder.linear)")
    if options.get("dataset_type") == "cars_encode" and config["input_resolution"] == 256:
        config["rows"] = list(CAR_ROWS)
    added = iterative or options.get("start_from_latent_avg") is not False  # ReStyle starts from it in any case
    shape = (config["num_ws"], config["w_dim"])
    tensors["latent_avg"] = _latent_avg(value, shape) if added else torch.zeros(()).expand(shape)
    return Network("encoder", model, config, tensors, notes=tuple(notes))


def _body(tensors: dict[str, torch.Tensor]) -> dict:
    """Arguments of the body. A stage begins where the number of feature maps changes, as in all public encoders."""
    if "input_layer.0.weight" in tensors:
        body, stem, unit = "ir_se", "input_layer.0.weight", "body.{}.res_layer.1.weight"
    elif "conv1.weight" in tensors:
        body, stem, unit = "resnet", "conv1.weight", "body.{}.conv1.weight"
    else:
        raise CheckpointError("its encoder has no stem: neither encoder.input_layer.0.weight nor encoder.conv1.weight")
    width, input_nc = tensors[stem].shape[:2]
    channels, units = [width], [0]
    for index in range(_count(tensors, unit)):
        width = tensors[unit.format(index)].shape[0]
        if width != channels[-1]:
            channels.append(width)
            units.append(0)
        units[-1] += 1
    return {"input_nc": input_nc, "body": body, "units": units, "channels": channels}


def _progressive(options: dict) -> tuple[bool, str | None]:
    """(Whether heads give offsets from the first, what was assumed)."""
    name = options.get("encoder_type")
    if isinstance(name, str) and name in E4E_TYPES + PSP_TYPES:
        return name in E4E_TYPES, None
    found = any(key in options for key in E4E_OPTIONS)
    stated = f"the unknown encoder_type {name[:100]!r}" if isinstance(name, str) else "no encoder_type"
    reason = "opts of e4e's training, so e4e" if found else "no opts of e4e's training, so pSp"
    return found, f"opts has {stated}, and pSp and e4e have the same tensors; it has {reason} is assumed"


def _styles_of_generator(value: dict) -> int:
    """Style inputs of the generator: from its tensors, else the rows of the mean latent, else the stated size."""
    count = _count(_part(value, "decoder."), "to_rgbs.{}.conv.weight")
    if count:
        return 2 * count + 2
    mean = value.get("latent_avg")
    if isinstance(mean, torch.Tensor) and mean.ndim == 2 and len(mean) > 1:
        return len(mean)
    for key in ("output_size", "stylegan_size"):
        size = _options(value).get(key)
        if type(size) is int and 8 <= size <= 2**16 and not size & (size - 1):
            return 2 * (size.bit_length() - 1) - 2
    raise CheckpointError("nothing tells the size of its generator: no decoder, and opts has no output_size")


def _latent_avg(value: dict, shape: tuple[int, int]) -> torch.Tensor:
    mean = value.get("latent_avg")
    if not isinstance(mean, torch.Tensor):
        raise CheckpointError("latent_avg is missing, the mean latent that is added to the encoder's result")
    if mean.shape not in (shape, (1, shape[1]), shape[1:]):
        raise CheckpointError(f"latent_avg has shape {list(mean.shape)}, not {list(shape[1:])} or {list(shape)}")
    return mean.expand(shape)
