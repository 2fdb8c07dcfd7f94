import pytest

from . import host


@pytest.fixture(params=host.ORDERS)
def order(request):
    """The order in which blocks and threads take their turns: hand it to module.set_order."""
    return request.param
