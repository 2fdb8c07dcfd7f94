"""``torch_utils.ops.grid_sample_gradfix``: bilinear sampling with derivatives of any order in the picture."""

import torch
import torch.nn.functional as F

enabled = True  # set by training scripts; False gives torch's function itself


def grid_sample(input, grid):
    """`torch.nn.functional.grid_sample`: bilinear, zeros around the picture, corners not aligned.

    Args:
        input: [N, C, H, W].
        grid: [N, H', W', 2], (x, y) of each point, -1 and 1 being the outer edges of the picture.

    Returns:
        [N, C, H', W']. A grid that needs a gradient gets torch's derivatives: a second one from torch 2.13 on.
    """
    special = enabled and not grid.requires_grad and not torch.is_autocast_enabled(input.device.type)
    return _Sample.apply(input, grid) if special else _sample(input, grid)


def _sample(input, grid):
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# For a fixed grid sampling is a linear map S of the picture, so its derivative is the transposed map, whose own is S.
# torch before 2.13 has no derivative of the transposed map.


class _Sample(torch.autograd.Function):
    """x -> S x."""

    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(x, grid)
        return _sample(x, grid)

    @staticmethod
    def backward(ctx, dy):
        return _Transposed.apply(dy, *ctx.saved_tensors), None


class _Transposed(torch.autograd.Function):
    """y -> S^T y; of x only the shape matters."""

    @staticmethod
    def forward(ctx, y, x, grid):
        ctx.save_for_backward(grid)
        # bilinear, zeros, corners not aligned; gradient of the picture but not of the grid
        return torch.ops.aten.grid_sampler_2d_backward(y, x, grid, 0, 0, False, [True, False])[0]

    @staticmethod
    def backward(ctx, dx):
        return _Sample.apply(dx, *ctx.saved_tensors), None, None
