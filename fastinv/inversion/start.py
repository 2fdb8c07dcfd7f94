"""Where an optimisation starts, when the caller says so: codes, a result, or an encoder's guess."""

from pathlib import Path

import torch

from fastinv.checkpoints import network_hash
from fastinv.errors import UsageError
from fastinv.inversion.objective import find_encoder
from fastinv.inversion.result import InversionResult
from fastinv.inversion.spaces import nested


def start_codes(init, G, target: torch.Tensor) -> tuple[dict | None, dict]:
    """(codes {"w_plus": [N, num_ws, w_dim], ...} or None, facts for the settings) for the argument ``init`` of
    ``invert``. A result's codes are all there, with its tuned weights; a method takes what it can begin with.

    Args:
        init: None; w_plus [N or 1, num_ws, w_dim] or [num_ws, w_dim]; an InversionResult; a module with ``encode``; a
            folder of a result, a latent file, or the name or file of an encoder.
        G: the generator.
        target: pictures [N, 3, R, R].

    Raises:
        UsageError: something else, or codes of another shape or number.
    """
    if init is None:
        return None, {}
    count, shape = len(target), (G.num_ws, G.w_dim)
    if isinstance(init, (str, Path)) and (Path(init) / "result.json").is_file():
        init = InversionResult.load(init)
    if isinstance(init, InversionResult):
        codes, facts = {"w_plus": init.w_plus, **init.codes}, {"init": "result"}
    elif isinstance(init, torch.Tensor):
        codes, facts = {"w_plus": init.unsqueeze(0) if init.ndim == 2 else init}, {"init": "codes"}
    elif isinstance(init, torch.nn.Module) or isinstance(init, (str, Path)):
        encoder = find_encoder(init, G).to(target.device, target.dtype)
        with torch.no_grad():
            codes = {"w_plus": encoder.encode(target)}
        facts = {"init": {"encoder": type(encoder).__name__, "sha256": network_hash(encoder)}}
    else:
        raise UsageError(f"init must be codes, an InversionResult or an encoder, not {type(init).__name__}")
    w_plus = codes["w_plus"]
    if w_plus.ndim != 3 or tuple(w_plus.shape[1:]) != shape or len(w_plus) not in (1, count):
        raise UsageError(
            f"init has codes {list(w_plus.shape)}; {count} picture(s) need [{count}, {shape[0]}, {shape[1]}]"
        )
    if not all(value.isfinite().all() for value in codes.values()):
        raise UsageError("init has codes that are not finite (NaN or infinity)")
    for name, value in codes.items():  # compressed weights are whole numbers
        value = value.detach().to(target.device, target.dtype if value.is_floating_point() else None)
        codes[name] = value.expand(count, *value.shape[1:])
    return nested(codes), facts
