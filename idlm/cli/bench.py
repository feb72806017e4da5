"""``idlm bench``: methods against a known truth, and the speed of what they are made of."""

from __future__ import annotations

from idlm.bench import oracle_cli, speed_cli, toy_cli
from idlm.cli.shared import Parser
from idlm.locks import alone_writing

_BENCHES = {
    "toys": (toy_cli, "densities of the plane and equal tokens, each an exact table"),
    "oracle": (oracle_cli, "a text-like language whose likelihood is known"),
    "speed": (speed_cli, "sampler, losses and start-up against their bounds"),
}


def _parser() -> Parser:
    parser = Parser(prog="idlm bench", description=__doc__, allow_abbrev=False)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="toys|oracle|speed")
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
    if options.bench == "speed":  # two of them at once would also measure each other
        with alone_writing(options.json, remedy="wait for it to end, or name another --json"):
            speed_cli.run(options)
        return
    _BENCHES[options.bench][0].run(options)
