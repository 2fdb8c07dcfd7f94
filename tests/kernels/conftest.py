import pytest


@pytest.fixture(params=["forward", "reverse", "random"])
def order(request):
    """The order of blocks and threads: hand it to module.set_order."""
    return request.param
