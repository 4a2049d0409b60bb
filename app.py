"""Try a trained network on a page in the browser.

python app.py --ckpt_path runs/NAME/checkpoints/last.ckpt
python app.py --run runs/NAME   # also shows the mistakes of its last epoch
python app.py --data_dir data   # also shows those of the project's own weights
python app.py --help
"""

import logging
import os
import socket
import sys
import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from analysis.finished_run import open_run, read_run
from analysis.loading import load_model, read_test_images, settle_device
from common import cli
from common.errors import InputError, StoppedError
from common.files import expanded
from common.text import one_line

if TYPE_CHECKING:  # it takes seconds, and may be missing
    import gradio as gr


def app(
    ckpt_path: str | None = None,
    run: str | None = None,
    data_dir: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Serve a page to try a trained network, until Ctrl-C.

    Args:
        ckpt_path: Checkpoint of the network; null for the last one of `--run`, or for
            the project's own weights.
        run: Folder of a finished run, such as runs/NAME, whose mistakes to browse.
        data_dir: Folder of the images whose mistakes to browse; null for that of the
            training of `--run`, or for none.
        device: Where to look at images; auto takes a GPU where there is one.
        host: Address to serve the page on; 0.0.0.0 opens it to other machines.
        port: Its port, from 1 to 65535.

    Raises:
        InputError: The address cannot be used, or a file cannot be read.
    """
    check_address(host, port)
    place = settle_device(device)
    if find_spec("gradio") is None:
        raise InputError("it needs gradio; pip install -r requirements-extras.txt")
    # Gradio asks its own page whether it is there, which no proxy can know.
    os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "*")
    from analysis.page import CSS, Mistakes, build_page

    path = None if ckpt_path is None else expanded(ckpt_path)
    tested = None
    if run is not None:
        model, images = open_run(read_run(expanded(run), data_dir), path)
        tested = images.test_set
    else:
        model = load_model(path)
        if data_dir is not None:
            tested = read_test_images(model, "auto", data_dir)
    model = model.to(place)
    mistakes = None if tested is None else Mistakes(model, *tested)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as uploads:
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False"}
        serve(build_page(model, mistakes), host, port, css=CSS)


def check_address(host: str, port: int) -> None:
    """Find out whether a page can be served there.

    Raises:
        InputError: It cannot.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"--port must be a whole number, from 1 to 65535, got {port}")
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM
        )
        with socket.socket(family, kind) as server:
            if os.name == "posix":  # elsewhere it would share the port
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {one_line(host)} --port {port}: no page can be served there "
            f"({reason}); give another"
        ) from None


def serve(page: "gr.Blocks", host: str, port: int, css: str) -> None:
    """Serve a page to this machine's browsers until a signal comes.

    Raises:
        InputError: The address has been taken since it was checked.
        SystemExit: A signal came.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,  # the browser would keep the images
            enable_monitoring=False,
            footer_links=[],
            css=css,
        )
    except OSError as error:
        raise InputError(f"--port {port}: {one_line(error)}") from None
    try:
        print(page.local_url, flush=True)
        page.block_thread()
    except StoppedError as stop:
        sys.exit(stop.exit_code)  # there is nothing to go on with
    finally:
        page.close(verbose=False)


def main() -> None:
    """The command line."""
    cli.run("app.py", app)


if __name__ == "__main__":
    main()
