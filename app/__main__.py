"""The director's desk in a browser: python -m app [CONFIG.yaml] [key=value ...]

  python -m app configs/app/demo.yaml desk.port=8001
  python -m app name=mine desk.compare=[demo]      two sets of exports side by side
  python -m app desk.host=0.0.0.0                  for the whole network, without a password: only where you trust it
"""

from __future__ import annotations

import importlib.util
import socket
import threading
import webbrowser
from typing import Any

from configs.app_schema import AppConfig
from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from modules.errors import UserError


def main(arguments: list[str]) -> None:
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} is not installed; `make app` installs it, or pip install -e '.[app]'")
    from app.server import make_app

    paths, items, _ = split_arguments(arguments)
    config = load_typed(AppConfig, paths or ["configs/app/demo.yaml"], items)
    app = make_app(config)
    sock = bind(config.desk.host, config.desk.port)
    host, port = sock.getsockname()[:2]
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/"
    print(f"the director's desk: {address}   (Ctrl-C ends it)", flush=True)
    if not config.desk.host.startswith("127.") and config.desk.host != "localhost":
        print("it can be reached from the network, by anybody: there is no password", flush=True)
    # The first visitor should not wait for the networks to be read.
    threading.Thread(target=warm_up, args=(app,), daemon=True).start()
    if config.desk.open:
        webbrowser.open(address)
    make_server(app).run(sockets=[sock])


def make_server(app: Any) -> Any:
    """A uvicorn server of the application, which ends without waiting for pages that wait for news."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    app.state.stopping = lambda: server.should_exit
    return server


def bind(host: str, port: int) -> socket.socket:
    """A socket of that address.

    Raises:
        UserError: it is taken, or not of this machine.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except OSError as error:
        sock.close()
        problem = f"{host}:{port} cannot be used ({error.strerror})"
        raise UserError(f"{problem}; choose another: desk.port=0 finds one") from None
    return sock


def warm_up(app: Any) -> None:
    """Load the networks of the first checkpoint."""
    pipeline = app.state.visitors.checkpoints("")
    for name in ("director", "tokenizer", "interpolator", "renderer"):
        getattr(pipeline, name)


if __name__ == "__main__":
    run_script(main, __doc__)
