"""Pictures, masks and checks that the tests of the losses share."""

import torch
from torch import nn
from torch.nn import functional


class SmallNetwork(nn.Module):
    """Two feature maps of strided convolutions."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator) * 0.2)
        self.second = nn.Parameter(torch.randn(5, 4, 3, 3, generator=generator) * 0.2)

    def features(self, images):
        a = functional.conv2d(images, self.first, stride=2).tanh()
        return [a, functional.conv2d(a, self.second, stride=2).tanh()]


def pictures(count=2, height=24, width=None, seed=0, dtype=torch.float64):
    """Smooth ones, as pictures are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1
    size = height, width or height
    fine = torch.rand(count, 3, *size, generator=generator, dtype=torch.float64) - 0.5
    return (functional.interpolate(coarse, size=size, mode="bilinear") * 0.8 + 0.4 * fine).to(dtype)


def soft_mask(count=2, height=24, width=None, seed=9, dtype=torch.float64):
    """Random weights, of which the right third is hidden."""
    mask = torch.rand(count, 1, height, width or height, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mask[..., -(-mask.shape[3] * 2 // 3) :] = 0
    return mask


def value_and_gradient(loss, images):
    images = images.detach().clone().requires_grad_()
    value = loss(images)
    return value.detach(), torch.autograd.grad(value.sum(), images)[0]


def check_threads(loss, images):
    """One thread and two give the same bits, value and gradient."""
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(value_and_gradient(loss, images))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
