"""What runs under the names ``torch_utils.custom_ops`` and ``torch_utils.ops.*`` after `fastinv.ops.compat.install`."""
