"""The command that serves the page: python -m realcustom_jax.demo"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from realcustom_jax import errors
from realcustom_jax.commands.program import say_nothing_of_accelerators
from realcustom_jax.commands.sample_options import Help, add_model_options, load_model, parse_with_config


def main(arguments: list[str] | None = None) -> int:
    """Serves the page until it is interrupted; returns the exit code, see module `errors`."""
    parser = _parser()
    options = parse_with_config(parser, arguments)
    say_nothing_of_accelerators()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end, as Ctrl-C does, so that the folder goes

    def work() -> None:
        with contextlib.suppress(KeyboardInterrupt):  # the usual end of a page
            _serve(options, parser)

    return errors.exit_code(work, debug=options.debug)


def _serve(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises ValueError or OSError for what cannot be used."""
    from realcustom_jax.demo.command import loading_options
    from realcustom_jax.demo.settings import first_settings

    _check_address(options.host, options.port)
    # Gradio reads its environment when it is imported.
    with _own_folder() as folder:
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
        from realcustom_jax.demo.page import build_page, serve
        from realcustom_jax.demo.studio import Studio
        from realcustom_jax.model_files.source import ModelSource

        print(f"Loading {options.model} …", file=sys.stderr)
        pipeline = load_model(options)
        studio = Studio(pipeline, tuple(loading_options(options, parser)),
                        ModelSource.open(options.model).few_steps_limit)
        page = build_page(studio, first_settings(pipeline, options))
        serve(page, folder, host=options.host, port=options.port, share=options.share)


def _check_address(host: str, port: int) -> None:
    """Raises ValueError where nobody can listen; a large model loads for a minute, so this is told before."""
    try:
        if not 0 < port < 2**16:
            raise OverflowError("a port is a number from 1 to 65535")
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"The page cannot be served at {host}, port {port} ({reason}); give another --port or --host."
                         ) from None


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for uploads and pictures, which is gone when the server has ended."""
    with tempfile.TemporaryDirectory(prefix="realcustom_demo_", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m realcustom_jax.demo", description="A web page that makes pictures of your subject.",
        formatter_class=Help)
    add = parser.add_argument_group("the page").add_argument
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is every one of this machine")
    add("--port", type=int, default=7860, help="port to listen at")
    add("--share", action="store_true", help="also give the page a public address: everything that is uploaded and "
                                             "made then goes through the servers of Gradio's makers")
    add_model_options(parser)
    add = parser.add_argument_group("the program").add_argument
    add("--config", type=Path, help="a Python file whose get_config() sets any of these, e.g. configs/sdxl.py")
    add("--debug", action="store_true", help="show the traceback of whatever goes wrong")
    # What such a file may say beside: what the page's fields hold at first; see `settings.first_settings`.
    parser.set_defaults(prompt=None, seed=0, num_images=1, width=None, height=None, steps=None, guidance=None,
                        scope=None, vision_scale=1.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
