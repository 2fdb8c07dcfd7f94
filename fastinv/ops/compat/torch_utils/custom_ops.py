"""``torch_utils.custom_ops``, which builds the kernels of the public code: here there is nothing to build."""

from fastinv.errors import NativeUnavailableError

verbosity = "brief"  # set by training scripts


def get_plugin(module_name, sources, headers=None, source_dir=None, **build_kwargs):
    """Never compiles: always a NativeUnavailableError. None of the replaced ops asks for a plugin."""
    raise NativeUnavailableError(
        f"custom_ops.get_plugin: {module_name!r} would have to be compiled, and under fastinv.ops.compat nothing is. "
        "The ops of StyleGAN2 and StyleGAN3 need no plugin; for a kernel of this code base's own, take "
        "compat.install() out"
    )
