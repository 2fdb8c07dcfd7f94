import pytest
import torch

from . import host


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The references work on tiny tensors, where two threads on a busy machine take a hundred times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=host.ORDERS)
def order(request):
    """The order in which blocks and threads take their turns: hand it to module.set_order."""
    return request.param
