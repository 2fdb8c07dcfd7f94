"""``torch_utils.ops.conv2d_gradfix`` and ``op.conv2d_gradfix``: torch's convolutions, and `no_weight_gradients`.

torch differentiates its convolutions any number of times by now; the context manager is all there is left to add.
"""

import contextlib

import torch
import torch.nn.functional as F

# Set by training scripts. False gives torch's functions themselves, which do not know of no_weight_gradients.
enabled = True
# Read when a gradient passes, in whatever thread autograd runs: hence a variable of the module.
weight_gradients_disabled = False


@contextlib.contextmanager
def no_weight_gradients(disable=True):
    """Gradients that are computed inside do not reach the weights of the convolutions of this module.

    It is backward that counts, wherever the convolution ran: for R1, `torch.autograd.grad` with respect to a picture.
    The weights' gradient is missing (None) then; that of the input is complete, and so are its own derivatives. Where
    only gradients of other tensors are asked for, that of the weights is not even computed. ``disable=False`` changes
    nothing. Not seen inside a function compiled by torch.compile.
    """
    global weight_gradients_disabled
    before = weight_gradients_disabled
    weight_gradients_disabled = before or disable
    try:
        yield
    finally:
        weight_gradients_disabled = before


class _Gate(torch.autograd.Function):
    """The identity; lets a gradient pass unless they are disabled."""

    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        return None if weight_gradients_disabled else gradient


def _gated(weight):
    return _Gate.apply(weight) if enabled and torch.is_grad_enabled() and weight.requires_grad else weight


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`torch.nn.functional.conv2d` that heeds `no_weight_gradients`.

    input [N, C, H, W], weight [out, C / groups, height, width], bias [out] -> [N, out, H', W'].
    """
    return F.conv2d(input, _gated(weight), bias, stride, padding, dilation, groups)


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """`torch.nn.functional.conv_transpose2d` that heeds `no_weight_gradients`.

    input [N, C, H, W], weight [C, out / groups, height, width], bias [out] -> [N, out, H', W'].
    """
    return F.conv_transpose2d(input, _gated(weight), bias, stride, padding, output_padding, groups, dilation)
