"""``idlm fit|validate|test``: LightningCLI, the same program as ``lightning fit``."""

from __future__ import annotations

import logging
import warnings

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class CLI(LightningCLI):
    """YAML builds constructors; nothing else ever sees a configuration."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # one tokenizer and one length, said once; modules that do not have them ignore the link
        parser.set_defaults({"trainer.max_epochs": -1, "trainer.use_distributed_sampler": False})


def run(argv: list[str]) -> None:
    """Run LightningCLI on ``argv``, whose first word is the subcommand.

    Raises:
        SystemExit: with code 2 for arguments or configurations that are wrong.
        UserError: for what cannot be reached or does not fit.
    """
    # the loader reads memory-mapped rows: worker processes would cost more than they bring
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"parser_mode": "omegaconf", "prog": "idlm"},
        args=argv,
    )
