"""The configuration of a denoiser, as ``config.json`` holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PretrainedConfig

from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.processes import Process

# The sizes that every layout of the family states under the same names, ours and the published.
SIZES = ("vocab_size", "model_length", "hidden_dim", "cond_dim", "n_blocks", "n_heads", "dropout")
# All that decides the network and its process: what our own config.json must hold.
FIELDS = (
    *SIZES,
    "time_conditioning",
    "process",
    "schedule",
    "schedule_eps",
    "latent_global",
    "latent_position",
)


class DiffusionConfig(PretrainedConfig):
    """Sizes, process and latent of a :class:`idlm.models.DiffusionLM`.

    Args:
        vocab_size: number of states V; for the absorbing process the mask is the last, V - 1.
        model_length: context the model was trained for.
        hidden_dim: width D.
        cond_dim: width of the conditioning that drives adaLN.
        n_blocks: transformer blocks.
        n_heads: attention heads; must divide ``hidden_dim``.
        dropout: dropout after attention and MLP.
        time_conditioning: whether the network sees sigma_t (the published MDLM does not).
        process: ``absorbing``, ``uniform``, or the name of a registered process of your own.
        schedule: ``log-linear`` or ``cosine``.
        schedule_eps: alpha(1) of the schedule.
        latent_global: size of the Gaussian vector that enters through adaLN, 0 for none.
        latent_position: size of the Gaussian noise added to the embedding of each mask, or
            of every token where the process has no mask, 0 for none.
    """

    model_type = "idlm"

    def __init__(
        self,
        vocab_size: int = 50258,
        model_length: int = 1024,
        hidden_dim: int = 768,
        cond_dim: int = 128,
        n_blocks: int = 12,
        n_heads: int = 12,
        dropout: float = 0.1,
        time_conditioning: bool = False,
        process: str = "absorbing",
        schedule: str = "log-linear",
        schedule_eps: float = 1e-3,
        latent_global: int = 0,
        latent_position: int = 0,
        **kwargs: Any,
    ) -> None:
        sizes = (vocab_size, model_length, hidden_dim, cond_dim, n_blocks, n_heads)
        for name, size in zip(SIZES, sizes, strict=False):
            if type(size) is not int or size < 1:
                raise UserError(f"{name} is {size!r}; it must be a whole number, 1 or more")
        for name, size in (("latent_global", latent_global), ("latent_position", latent_position)):
            if type(size) is not int or size < 0:
                raise UserError(f"{name} is {size!r}; it must be a whole number, 0 (off) or more")
        for name, word in (("process", process), ("schedule", schedule)):
            if not isinstance(word, str):
                raise UserError(f"{name} is {word!r}; it must be the name of one")
        if type(schedule_eps) not in (int, float):
            raise UserError(f"schedule_eps is {schedule_eps!r}; it must be a number in [0, 1)")
        if type(dropout) not in (int, float) or not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout is {dropout!r}; it must be a number in [0, 1)")
        if not isinstance(time_conditioning, bool):
            raise UserError(f"time_conditioning is {time_conditioning!r}; it must be true or false")
        if hidden_dim % n_heads or (hidden_dim // n_heads) % 2:
            raise UserError(
                f"hidden_dim {hidden_dim} with n_heads {n_heads} gives no even head size; "
                "choose n_heads so that hidden_dim / n_heads is an even whole number"
            )
        if time_conditioning and schedule_eps == 0:
            raise UserError(
                "schedule_eps is 0 with time_conditioning, so the network would be told "
                "sigma(1) = infinity; choose a small schedule_eps such as 0.001"
            )
        self.vocab_size = vocab_size
        self.model_length = model_length
        self.hidden_dim = hidden_dim
        self.cond_dim = cond_dim
        self.n_blocks = n_blocks
        self.n_heads = n_heads
        self.dropout = dropout
        self.time_conditioning = time_conditioning
        self.process = process
        self.schedule = schedule
        self.schedule_eps = schedule_eps
        self.latent_global = latent_global
        self.latent_position = latent_position
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read the ``config.json`` of any layout of the family, ours or a published one.

        ``AutoConfig`` ends here as :func:`idlm.load` does.

        Raises:
            UserError: if it is of no known layout, or lacks what decides the network.
        """
        from idlm.models.published import translate

        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "this checkpoint"
        source = f"the config.json of {name}"
        try:
            return super().from_dict(translate(config_dict, source), **kwargs)
        except (AttributeError, TypeError, ValueError) as error:
            # what transformers itself keeps there or is asked for, such as id2label or dtype
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"transformers cannot take a setting in {source}, or one given beside it "
                f"({reason}); correct it"
            ) from error

    def to_diff_dict(self) -> dict[str, Any]:
        """What differs from transformers' defaults, and every field that decides the network.

        A reader must not have to know our class defaults, so ``save_pretrained`` states them all.
        """
        return {**super().to_diff_dict(), **{name: getattr(self, name) for name in FIELDS}}

    def make_process(self) -> Process:
        """The process the network was trained for."""
        from idlm.processes import make_process

        return make_process(
            self.process, self.vocab_size, schedule=self.schedule, eps=self.schedule_eps
        )
