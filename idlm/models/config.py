"""The configuration of a denoiser, as ``config.json`` holds it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from idlm.errors import UserError


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
        process: ``absorbing`` (``uniform`` arrives with its process).
        schedule: ``log-linear`` or ``cosine``.
        schedule_eps: alpha(1) of the schedule.
        latent_global: size of the Gaussian vector that enters through adaLN, 0 for none.
        latent_position: size of the Gaussian noise added to each mask embedding, 0 for none.
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
        if hidden_dim % n_heads or (hidden_dim // n_heads) % 2:
            raise UserError(
                f"hidden_dim {hidden_dim} with n_heads {n_heads} gives no even head size; "
                "choose n_heads so that hidden_dim / n_heads is an even whole number"
            )
        if latent_global < 0 or latent_position < 0:
            raise UserError(
                f"latent_global is {latent_global} and latent_position is {latent_position}; "
                "both are sizes, 0 (off) or more"
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


# Otherwise transformers warns of an unknown type when it opens the tokenizer beside a checkpoint.
AutoConfig.register(DiffusionConfig.model_type, DiffusionConfig)
