"""Presets: settings that were measured to reach a quality soon (benchmarks/time_to_quality.py)."""

from fastinv.errors import UsageError

# name -> {"method", "dtype", "steps", and options of the method}
PRESETS: dict[str, dict] = {
    "fast": {
        "method": "image2stylegan", "dtype": "auto", "steps": 110,
        "learning_rate": 0.4, "precondition": 0.5, "beta1": 0.6, "ramp_down": 0.5,
    },
    "balanced": {
        "method": "image2stylegan", "dtype": "auto", "steps": 250,
        "learning_rate": 0.3, "precondition": 0.5, "beta1": 0.6,
    },
    "best": {
        "method": "image2stylegan", "dtype": None, "steps": 1000,
        "learning_rate": 0.3, "precondition": 0.5, "beta1": 0.6,
    },
}


def apply_preset(preset: str | None, method: str | None, steps: int | None, dtype, options: dict):
    """(method, steps, dtype, options) with what the preset says where nothing was given.

    A preset's steps and options are for its method; with another one they are left out.

    Raises:
        UsageError: an unknown preset.
    """
    if preset is None:
        return "image2stylegan" if method is None else method, steps, dtype, options
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    settings = dict(PRESETS[preset])
    own, kind, count = settings.pop("method"), settings.pop("dtype"), settings.pop("steps")
    dtype = kind if dtype is None else dtype
    if method not in (None, own):
        raise UsageError(f"preset {preset!r} is for {own}, not for {method}; leave one of them out")
    return own, count if steps is None else steps, dtype, settings | options
