"""The denoiser as users hold it: a Hugging Face model around the DiT and its process."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from idlm import random
from idlm.errors import UserError
from idlm.models import auto
from idlm.models.attention import check_backend
from idlm.models.config import DiffusionConfig
from idlm.models.dit import Block, DiT, Embedded, Latent
from idlm.processes import Process


class DiffusionLM(PreTrainedModel):
    """A denoiser, or a generator when it has a latent.

    ``features`` runs the backbone over all positions; ``head`` turns the features of just the
    positions that are needed into logits; calling the model is their composition.
    """

    config_class = DiffusionConfig
    # of the hub, that the weights are of: the tokenizer of a text prompt is of the same
    revision: str | None = None
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # so that transformers lets attn_implementation="sdpa" pass
    _no_split_modules: ClassVar[list[str]] = ["Block"]

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self._process = config.make_process()
        self.backbone = DiT(config, mask_id=self._process.mask_id)
        self.post_init()  # transformers' bookkeeping, which from_pretrained needs

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> DiffusionLM:
        """Load as :func:`idlm.load` does; ``AutoModelForMaskedLM`` ends here.

        Args:
            pretrained_model_name_or_path: folder or hub id, of any layout of the family.
            kwargs: see :func:`idlm.models.auto.from_pretrained`.

        Raises:
            UserError: as :func:`idlm.load`, and for arguments that would have no effect.
        """
        return auto.from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Modules initialise themselves; transformers must not do it again."""

    @property
    def process(self) -> Process:
        """The process this network was trained for."""
        return self._process

    @property
    def has_latent(self) -> bool:
        """Whether the network takes noise, that is, whether it is a generator."""
        return self.backbone.latent is not None

    def set_attention(self, backend: str) -> None:
        """Choose ``auto``, ``sdpa`` or ``flash`` for every block.

        Raises:
            UserError: for another name, or flash-attn that is not installed.
        """
        check_backend(backend)
        for block in self.backbone.blocks:
            cast(Block, block).attention = backend

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.backbone.gradient_checkpointing = enabled

    def compile_backbone(self, **options: Any) -> None:
        """``torch.compile`` in place: parameter names, and so saved files, stay as they are.

        Args:
            options: of ``torch.compile``. For sampling on CUDA ``mode="reduce-overhead"`` captures
                the backbone in a CUDA graph at its first calls and replays it at every step.
        """
        self.backbone.compile(**options)

    @property
    def compiled(self) -> bool:
        """Whether :meth:`compile_backbone` was called."""
        return self.backbone._compiled_call_impl is not None

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> Latent | None:
        """epsilon for samples ``[B]`` at one step, a pure function of seed, sample and step.

        Returns:
            The latent in fp32 on the device of ``sample``; ``None`` for a network without.
        """
        if not self.has_latent:
            return None
        keys: dict[str, Any] = {"sample": sample, "seed": seed, "step": step}
        g, p = self.config.latent_global, self.config.latent_position
        stream = random.Stream
        return Latent(
            random.normal(g, stream=stream.LATENT_GLOBAL, **keys) if g else None,
            random.normal(length, p, stream=stream.LATENT_POSITION, **keys) if p else None,
        )

    def _fresh_latent(self, batch: int, length: int, device: torch.device) -> Latent | None:
        if not self.has_latent:
            return None
        g, p = self.config.latent_global, self.config.latent_position
        return Latent(
            torch.randn(batch, g, device=device) if g else None,
            torch.randn(batch, length, p, device=device) if p else None,
        )

    def embedder(self) -> Callable[[Tensor], Tensor]:
        """What embeds float scores ``[B, l, V]``: softmax(scores) @ E, ``[B, l, D]``.

        Each position is embedded by itself, so a relaxed state may be made and embedded a few
        positions at a time, and then given to :meth:`features` as :class:`Embedded`.
        """
        return self.backbone.vocab_embed

    def features(
        self,
        input_ids: Tensor | Embedded,
        timesteps: Tensor | None = None,
        latent: Latent | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Features after the final norm, ``[B, L, D]``, or at some positions, ``[B, M, D]``.

        Args:
            input_ids: states ``[B, L]``, float scores ``[B, L, V]`` of a relaxed state, or its
                embedding ``[B, L, D]`` by :meth:`embedder` as :class:`Embedded`.
            timesteps: sigma ``[B]`` or ``[B, 1]``, or one number for all; zero when left out,
                which only a network without time conditioning accepts.
            latent: epsilon; a generator draws fresh noise at every call when it is left out.
            at: positions whose features are asked for, int64 ``[B, M]``, in any order and as often
                as one likes: the last block works for these alone.

        Raises:
            UserError: if a time-conditioned network gets no ``timesteps``, there is another number
                of them, the latent has other parts or sizes than the network's, ``at`` is not one
                list of positions for each row, or embedded states are not as long as the network's.
        """
        states = input_ids.states if isinstance(input_ids, Embedded) else input_ids
        batch, length = states.shape[:2]
        if timesteps is None:
            if self.config.time_conditioning:
                raise UserError(
                    "this network is conditioned on time but timesteps is None; "
                    "pass sigma_t = -log alpha_t, one per sequence, [B]"
                )
            timesteps = torch.zeros(batch, device=states.device)
        elif timesteps.numel() not in (1, batch):
            raise UserError(
                f"timesteps has shape {tuple(timesteps.shape)} for {batch} sequences; pass one "
                "sigma for each, [B], or one for all"
            )
        if latent is None:
            latent = self._fresh_latent(batch, length, states.device)
        else:
            self._check_latent(latent, batch, length)
        sigma = timesteps.reshape(-1).expand(batch)
        if at is None:  # a network that somebody wrapped need not know of positions
            return self.backbone(input_ids, sigma, latent)
        if at.dim() != 2 or len(at) != batch or at.dtype != torch.int64:
            raise UserError(
                f"at is {at.dtype} of shape {tuple(at.shape)} for {batch} sequences; pass int64 "
                "positions, one list for each, [B, M]"
            )
        return self.backbone(input_ids, sigma, latent, at)

    def _check_latent(self, latent: Latent, batch: int, length: int) -> None:
        """A part that is missing would switch that noise off, and one too many do nothing."""
        g, p = self.config.latent_global, self.config.latent_position
        wanted: dict[str, tuple[int, ...] | None]
        wanted = {
            "vector": (batch, g) if g else None,
            "position": (batch, length, p) if p else None,
        }
        for name, shape in wanted.items():
            part = getattr(latent, name)
            given = None if part is None else tuple(part.shape)
            if given != shape:
                raise UserError(
                    f"latent.{name} has shape {given}, but this network takes {shape}; leave "
                    "latent out for fresh noise"
                )

    def head(self, features: Tensor) -> Tensor:
        """Raw logits ``[..., V]`` of features ``[..., D]``.

        Always in the weights' own precision: in bf16 the logits would carry an error as large
        as the difference between teacher and fake model (methods C.7.12).
        """
        linear = self.backbone.output_layer.linear
        with torch.autocast(features.device.type, enabled=False):
            return linear(features.to(linear.weight.dtype))

    def forward(
        self,
        input_ids: Tensor,
        timesteps: Tensor | None = None,
        latent: Latent | None = None,
        **unused: Any,
    ) -> MaskedLMOutput:
        """Raw logits ``[B, L, V]`` under ``.logits``, as the published models return."""
        # transformers passes switches that are off; a tensor has no truth value
        extra = sorted(
            name
            for name, value in unused.items()
            if name != "return_dict" and value is not None and value is not False
        )
        if extra:
            raise UserError(
                f"the model got {', '.join(extra)}, which it does not take; "
                "pass input_ids, timesteps and latent only"
            )
        return MaskedLMOutput(logits=self.head(self.features(input_ids, timesteps, latent)))

    def with_latent(
        self, *, latent_global: int, latent_position: int, latent_init: float = 0.0
    ) -> DiffusionLM:
        """A generator with this network's weights and a new latent.

        Args:
            latent_global: size of the vector, 0 for none.
            latent_position: size of the noise per position, 0 for none.
            latent_init: scale of its first weights. 0 makes it silent: the first forward pass
                equals this network's whatever the noise.

        Raises:
            UserError: for a scale that is negative or not finite, or without a latent to scale.
        """
        if not 0.0 <= latent_init < math.inf:
            raise UserError(
                f"latent_init is {latent_init}; it is a scale, 0 (a silent latent) or a small "
                "positive number"
            )
        if latent_init and not latent_global and not latent_position:
            raise UserError(
                f"latent_init is {latent_init}, but latent_global and latent_position are 0, so "
                "there is no latent; give one a size, or leave latent_init out"
            )
        config = copy.deepcopy(self.config)
        config.latent_global, config.latent_position = latent_global, latent_position
        generator = type(self)(config)
        weights = {k: v for k, v in self.state_dict().items() if ".latent." not in k}
        missing, unexpected = generator.load_state_dict(weights, strict=False)
        if unexpected or any(".latent." not in name for name in missing):
            raise RuntimeError(f"copying the teacher left {missing} unset and {unexpected} unused")
        if generator.backbone.latent is not None and latent_init:
            generator.backbone.latent.wake(latent_init)
        return generator.to(device=self.device, dtype=self.dtype).train(self.training)
