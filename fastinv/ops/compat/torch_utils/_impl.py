"""The ``impl`` argument of the public ops."""

from fastinv.errors import UsageError


def backend(op: str, impl: str) -> str:
    """"cuda" is our fastest on any device, "ref" is plain PyTorch; anything else is a UsageError."""
    if impl not in ("cuda", "ref"):
        raise UsageError(f"{op}: impl must be 'cuda' (the fastest on any device) or 'ref', got {impl!r}")
    return "auto" if impl == "cuda" else "ref"
