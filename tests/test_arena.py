"""Kept memory: a block is free again exactly when the last tensor on it is gone, and no more of them are kept."""

import copy
import os
import pickle
import threading

import pytest
import torch

from fastinv.models import arena
from fastinv.models.arena import Arena, padded

MEGABYTE = 1 << 20


def test_a_block_goes_back_with_its_last_tensor(mapped):
    pool = Arena()
    lease = pool.lease("kept", MEGABYTE)
    first, second = (lease.tensor(offset, (4, 8), torch.float32) for offset in (0, 128))
    del lease
    part = first[1:]
    del first
    assert pool.free_bytes() == 0
    del second
    assert pool.free_bytes() == 0
    del part
    assert pool.free_bytes() == MEGABYTE
    pool.lease("kept", MEGABYTE)
    assert mapped == [MEGABYTE]


def test_leases_that_live_together_have_blocks_of_their_own(mapped):
    pool = Arena()
    leases = [pool.lease("kept", MEGABYTE) for _ in range(3)]
    tensors = [lease.tensor(0, (256,), torch.float32).fill_(i) for i, lease in enumerate(leases)]
    assert len(mapped) == 3 and all((tensor == i).all() for i, tensor in enumerate(tensors))
    del leases, tensors
    assert pool.free_bytes() == MEGABYTE  # one is kept
    other = pool.lease("scratch", MEGABYTE)
    assert len(mapped) == 4 and other is not None


def test_another_size_replaces_the_free_block(mapped):
    pool = Arena()
    for size in (MEGABYTE, 2 * MEGABYTE, 2 * MEGABYTE, MEGABYTE):
        pool.lease("kept", size)
        assert pool.free_bytes() == size
    assert mapped == [MEGABYTE, 2 * MEGABYTE, MEGABYTE]


def test_tensors_outlive_the_arena():
    pool = Arena()
    tensor = pool.lease("kept", MEGABYTE).tensor(64, (100,), torch.float64).fill_(3)
    del pool
    assert (tensor == 3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_layouts(dtype):
    lease = Arena().lease("kept", MEGABYTE)
    shape = (2, 3, 5, 7)
    assert lease.tensor(64, shape, dtype).is_contiguous()
    x = lease.feature_map(128, shape, dtype)
    assert x.shape == shape and x.dtype == dtype and x.is_contiguous(memory_format=torch.channels_last)
    assert x.data_ptr() % 64 == 0 and x.data_ptr() - lease.tensor(64, shape, dtype).data_ptr() == 64
    with pytest.raises(ValueError):
        lease.tensor(MEGABYTE - 8, (100,), dtype)
    assert padded(1) == padded(64) == 64 and padded(65) == 128


def test_a_large_tensor_settles_in_memory_of_its_own():
    small, large = torch.arange(10), torch.arange(arena.HUGE_PAGE, dtype=torch.int32).view(2, -1)
    assert arena.settled(small) is small
    copied = arena.settled(large)
    assert torch.equal(copied, large) and copied.data_ptr() != large.data_ptr()


def test_changes_are_seen_by_autograd_one_tensor_at_a_time():
    lease = Arena().lease("kept", MEGABYTE)
    x = torch.ones(4, requires_grad=True)
    factor = lease.tensor(0, (4,), torch.float32).fill_(2)
    y = x * factor
    lease.tensor(0, (4,), torch.float32).fill_(2)  # scratch elsewhere, as far as autograd can know
    y.sum().backward(retain_graph=True)
    factor.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_threads_share_an_arena():
    pool, wrong = Arena(), []

    def work(number):
        for _ in range(200):
            tensor = pool.lease("kept", 4096).tensor(0, (1024,), torch.int32).fill_(number)
            if not (tensor == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pool.free_bytes() == 4096


def test_copies_have_no_blocks():
    pool = Arena()
    pool.lease("kept", MEGABYTE)
    for other in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert isinstance(other, Arena) and other.free_bytes() == 0
    assert pool.free_bytes() == MEGABYTE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_writes_to_memory_of_its_own():
    pool = Arena()
    tensor = pool.lease("kept", MEGABYTE).tensor(0, (16,), torch.float32).fill_(1)
    child = os.fork()
    if not child:
        tensor.fill_(2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (tensor == 1).all()
