"""``idlm demo``: a page on this machine that shows checkpoints writing, call by call."""

from __future__ import annotations

import argparse
import os
import socket
from typing import TYPE_CHECKING

from idlm.cli.shared import Parser, require_bundled
from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.cli.demo_page import Writer

_DEFAULT = ("python-docs-student-16step", "python-docs-teacher")
_MOST = 4  # columns that a screen holds


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="idlm demo", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        default=_DEFAULT,
        metavar="X",
        help="folders, bundled names, Hugging Face ids or Lightning .ckpt files, each with its "
        f"tokenizer; {_MOST} at most (default: {' '.join(_DEFAULT)})",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; a GPU if there is one")
    return parser


def run(argv: list[str]) -> None:
    """Serve the page until interrupted.

    Args:
        argv: the arguments after ``demo``.

    Raises:
        UserError: for bad usage, a checkpoint that does not load, a port that is taken, or a
            missing gradio.
    """
    args = _parser().parse_args(argv)
    _check(args)
    # the page has nothing to tell anybody; read when gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "idlm demo needs gradio, which is not installed: pip install -c constraints.txt "
            "-e '.[demo]'"
        ) from error

    from idlm.cli.demo_page import serve
    from idlm.devices import pick_device

    device = str(pick_device(args.device))
    serve([_writer(name, device) for name in args.checkpoints], args.host, args.port)


def _check(args: argparse.Namespace) -> None:
    names = list(args.checkpoints)
    if len(names) > _MOST:
        raise UserError(f"{len(names)} checkpoints are named; a page has room for {_MOST}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"checkpoint {twice!r} is named twice; name each once")
    if not 1 <= args.port < 1 << 16:
        raise UserError(f"--port is {args.port}; it must be from 1 to 65535")
    for name in names:
        require_bundled(name)
    try:
        with socket.create_server((args.host, args.port)):
            pass
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port} cannot be listened on "
            f"({error.strerror or error}); choose another with --port"
        ) from error


def _writer(name: str, device: str) -> Writer:
    import idlm
    from idlm.cli.demo_page import Writer
    from idlm.models import load_tokenizer

    return Writer(name, idlm.load(name, device=device), load_tokenizer(name))
