"""The server of the page: on 127.0.0.1 only, behind the guard, with temporary files of its own that go with it."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastinv.errors import UsageError

ADDRESS, FIRST, PORTS = "127.0.0.1", 7860, 100
MISSING = "fastinv ui needs Gradio: pip install 'fastinv[ui]'"


def listen(port: int | None) -> socket.socket:
    """A listening socket on 127.0.0.1.

    Args:
        port: 0 is any free one; None is the first free one from 7860 on.

    Raises:
        UsageError: the port is taken, or may not be used.
    """
    tries = range(FIRST, FIRST + PORTS) if port is None else [port]
    for number in tries:
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((ADDRESS, number))
            opened.listen()
            return opened
        except OSError as error:
            opened.close()
            reason = error
    which = f"no port from {FIRST} to {FIRST + PORTS - 1} is free" if port is None else f"cannot use port {port}"
    raise UsageError(f"{which}: {reason.strerror}; give another --port, or 0 for any free one") from reason


@contextmanager
def surroundings() -> Iterator[Path]:
    """Gradio imported without anything that opens it up or calls home; the folder for its files, removed at the end.

    Raises:
        UsageError: it is not installed.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="fastinv-ui-") as folder:
        for name in [name for name in before if name.startswith("GRADIO_")]:
            del os.environ[name]  # such as GRADIO_SHARE and GRADIO_ALLOWED_PATHS
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1"}
        try:
            import gradio  # noqa: F401
            import uvicorn  # noqa: F401

            yield Path(folder)
        except ModuleNotFoundError as error:
            raise UsageError(f"{MISSING} ({error.name} is missing)") from error
        finally:
            os.environ.clear()
            os.environ |= before


def application(studio, folder: Path):
    """The guarded ASGI application of a studio; ``folder`` is that of ``surroundings``."""
    import fastapi
    import gradio

    from fastinv.ui import app
    from fastinv.ui.guard import UPLOAD_LIMIT, Guard

    closed = {"docs_url": None, "redoc_url": None, "openapi_url": None}  # pages for programmers
    outer = fastapi.FastAPI(**closed)
    blocks = app.build(studio, folder)
    page = gradio.mount_gradio_app(
        outer, blocks, "/", footer_links=[], run_history=False, allowed_paths=[], blocked_paths=[],
        show_error=False, max_file_size=UPLOAD_LIMIT, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, app_kwargs=closed, theme=app.theme(), css=app.CSS,
    )  # fmt: skip
    # Gradio 6.31 copies whatever file a request names into the folder that it serves, until it thinks that it has been
    # launched; from then on only what was uploaded. Mounting does not count as launching.
    blocks.has_launched = True
    return Guard(page)


def serve(make_studio: Callable[[], object], port: int | None, ready: Callable[[str], None]) -> None:
    """Serve the page until a signal ends it (Ctrl-C raises KeyboardInterrupt once everything is tidied up).

    Args:
        make_studio: makes the Studio, once it is sure that the server can start.
        port: see ``listen``.
        ready: called with the page's address when it can be opened.

    Raises:
        UsageError: Gradio is missing, or the port is taken.
    """
    with surroundings() as folder, listen(port) as opened:
        import uvicorn

        studio = make_studio()
        try:
            config = uvicorn.Config(
                application(studio, folder), log_level="warning", access_log=False, server_header=False, ws="none",
                proxy_headers=False, timeout_graceful_shutdown=1,
            )  # fmt: skip
            server = uvicorn.Server(config)
            ready(f"http://{ADDRESS}:{opened.getsockname()[1]}")  # it listens already: what comes now is answered soon
            server.run(sockets=[opened])
        finally:
            studio.close()
