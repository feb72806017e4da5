"""``idlm fit|validate|test``: LightningCLI, the same program as ``lightning fit``."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from idlm import paths
from idlm.cli import launch
from idlm.cli.config_file import check_file
from idlm.cli.early import config_files
from idlm.cli.fit_errors import in_sentences, one_line
from idlm.cli.fit_parts import SaveConfig, checked_trainer, log_folders
from idlm.cli.missing import beside_the_user, missing
from idlm.errors import UserError
from idlm.locks import alone_in
from idlm.training.checkpoint_io import previous_of, remove_leftovers
from idlm.training.loop import UpdateModule

# Warnings of Lightning that are wrong about this program, and why.
_UNFOUNDED = (
    # we pass the arguments that main() took from sys.argv
    ".*LightningCLI's args parameter.*",
    # the loader reads memory-mapped rows: worker processes would cost more than they bring
    ".*does not have many workers.*",
    # weights are 32 bits wide under bf16-mixed, so the summary's size is right
    ".*is not supported by the model summary.*",
    # the checkpoint after an update is the one wanted
    ".*Using ModelCheckpoint with manual optimization.*",
    # a resumed run goes on in the folder of the first; one that starts anew moves them aside
    "Checkpoint directory .* exists and is not empty.*",
    # the data module knows its position and starts there
    ".*resuming from a checkpoint that ended.*",
    ".*LeafSpec.*",
)
_ZIP = b"PK"  # what torch.save writes is an archive
_CKPT_WORDS = ("best", "last", "hpc")


class CLI(LightningCLI):
    """YAML builds constructors; nothing else ever sees a configuration."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, less ``predict``: generation is ``idlm generate``."""
        commands = LightningCLI.subcommands()
        del commands["predict"]
        return commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--deterministic``, and defaults that these trainings need."""
        # the loaders never end and share themselves out over the processes
        parser.set_defaults({"trainer.max_epochs": -1, "trainer.use_distributed_sampler": False})
        parser.add_argument(
            "--deterministic",
            action="store_true",
            help="the same numbers, bit by bit, from every run on the same machine with as many "
            "threads: --trainer.deterministic true",
        )

    def _parse_ckpt_path(self) -> None:
        """Leave the settings alone: a checkpoint brings weights, counters and positions only.

        LightningCLI would let the settings saved in it overrule those on the command line.
        """

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer from its settings.

        Raises:
            UserError: with Lightning's words, if they do not fit each other or this machine.
        """
        if self._get(self.config, "deterministic"):
            kwargs["deterministic"] = True
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            said = f"the trainer cannot be built: {one_line(error)}"
            raise missing(error) or UserError(said) from error
        except RuntimeError as error:
            if "SLURM" not in str(error):
                raise
            raise UserError(f"SLURM does not fit: {one_line(error)}") from error
        launch.check_count(trainer.num_devices * trainer.num_nodes)
        return checked_trainer(trainer, command=self.subcommand or "fit")

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """``Trainer.fit`` by the only run in its folders.

        Raises:
            UserError: if another run is there.
        """
        if not self.trainer.is_global_zero:
            self.trainer.fit(model, **kwargs)
            return
        callbacks = [getattr(c, "dirpath", None) for c in self.trainer.checkpoint_callbacks]
        kept = [str(folder) for folder in callbacks if folder and "://" not in str(folder)]
        root = str(self.trainer.default_root_dir)
        folders = [*kept, *([] if "://" in root else [root]), *log_folders(self.trainer)]
        remedy = (
            "wait for it to end, or give this run folders of its own: --trainer.default_root_dir "
            "and the dirpath of each ModelCheckpoint"
        )
        with alone_in(folders, remedy=remedy):
            for folder in kept:
                remove_leftovers(folder)
            self.trainer.fit(model, **kwargs)

    def before_fit(self) -> None:
        """Reach what the run needs before it starts processes: one sentence, at once."""
        self._check_checkpoint()
        self._reach_checkpoints()
        self._share_tokenizer()

        if isinstance(self.model, UpdateModule) and self.subcommand == "fit":
            self.model.check_run(str(self.trainer.precision), self.datamodule)

    before_validate = before_test = before_fit

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """A checkpoint is read as tensors and plain containers, wherever it is from."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _check_checkpoint(self) -> None:
        if self._get(self.config, "weights_only") is False:
            raise UserError(
                "weights_only is false, which would let a checkpoint run code; leave it out, every "
                "checkpoint of `idlm fit` loads without"
            )
        given = self._get(self.config, "ckpt_path")
        if not given or given in _CKPT_WORDS or ":" in given:
            return
        # a missing file that replaced another is looked for when it is read, and said to be missing
        kept = self.subcommand == "fit" and previous_of(given).exists()
        if not Path(given).exists() and not kept:
            raise UserError(
                f"ckpt_path is {given!r}, where there is no file; give the .ckpt that a run wrote "
                "(checkpoints/last.ckpt in its folder), or leave it out to start anew"
            )
        if given and Path(given).is_file() and not _begins(Path(given), _ZIP):
            raise UserError(
                f"ckpt_path is {given!r}, which is no checkpoint; give the .ckpt that a run wrote "
                "(checkpoints/last.ckpt in its folder)"
            )
        if given and Path(given).is_file():
            self._survey(given)

    def _survey(self, path: str) -> None:
        """Refuse a checkpoint that would run code, or of another training, before anything starts.

        Only what it holds is read, no tensor. Damage is told when they are.
        """
        from idlm.models.archive import Archive
        from idlm.models.unpickle import ForbiddenCallError

        try:
            with Archive(path) as archive:
                held = archive.root
        except ForbiddenCallError:
            raise
        except UserError:
            return
        if isinstance(self.model, UpdateModule) and isinstance(held, dict):
            self.model.check_resumed(held)

    def _reach_checkpoints(self) -> None:
        try:
            self.model.prepare_data()
        except UserError as error:
            key = "teacher" if "teacher" in self.model.hparams else "tokenizer"
            name = self.model.hparams.get(key)
            if name is None or Path(paths.resolve(name)).exists():
                raise
            raise UserError(
                f"{error}; on the command line: --model.init_args.{key} FOLDER, and for text that "
                "is here too --data.init_args.corpus FILE_OR_FOLDER"
            ) from error

    def _share_tokenizer(self) -> None:
        """Data without a tokenizer of its own is cut into the tokens of the model."""
        if getattr(self.datamodule, "tokenizer_name", "given") is None:
            settings = self.model.hparams
            if name := settings.get("tokenizer") or settings.get("teacher"):
                self.datamodule.tokenizer_name = _tokenizer_folder(name)


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _tokenizer_folder(name: str) -> str:
    from idlm.models import load_tokenizer

    return str(load_tokenizer(name).name_or_path)


def run(argv: list[str]) -> None:
    """Run LightningCLI on ``argv``, whose first word is the subcommand.

    Raises:
        UserError: for arguments and settings that are wrong, for what cannot be reached or does
            not fit, for a training that diverged, and for a loader process that died.
        Stopped: for a run that a signal ended, when it is saved.
    """
    for path in config_files(argv):
        check_file(path)
    for message in _UNFOUNDED:
        warnings.filterwarnings("ignore", message=message)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # ${trainer.default_root_dir} is what the whole line says it is, and all of it is below `fit`
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    with in_sentences(argv), launch.lightning_environment(), beside_the_user():
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "idlm", "exit_on_error": False},
            args=argv,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
