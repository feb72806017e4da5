"""``idlm bench``: methods against a known truth, on toys and on an oracle language."""

from __future__ import annotations

from idlm.bench import oracle_cli, toy_cli
from idlm.cli.shared import Parser

_BENCHES = {
    "toys": (toy_cli, "densities of the plane and equal tokens, each an exact table"),
    "oracle": (oracle_cli, "a text-like language whose likelihood is known"),
}


def _parser() -> Parser:
    parser = Parser(prog="idlm bench", description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="toys|oracle")
    for name, (module, line) in _BENCHES.items():
        module.add_arguments(
            benches.add_parser(name, help=line, description=module.__doc__, allow_abbrev=False)
        )
    return parser


def run(argv: list[str]) -> None:
    """Run the command.

    Raises:
        UserError: for options that do not fit, and from the bench that was named.
    """
    options = _parser().parse_args(argv)
    _BENCHES[options.bench][0].run(options)
