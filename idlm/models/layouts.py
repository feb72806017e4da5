"""The layouts a checkpoint can be written in: ours, and those that the authors' code reads."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import transformers

from idlm.errors import UserError
from idlm.models.config import SIZES, DiffusionConfig
from idlm.models.dit import Block
from idlm.models.modeling import DiffusionLM

LAYOUTS = ("idlm", "mdlm", "duo")

# Process of each published layout. Neither stores a schedule: both papers' is log-linear.
_PROCESS = {"mdlm": "absorbing", "duo": "uniform"}
_SCHEDULE = ("log-linear", 1e-3)


def config_json(config: DiffusionConfig, layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """What ``config.json`` holds in a layout.

    Args:
        config: of the network that is written.
        layout: one of :data:`LAYOUTS`.
        dtype: of the weights in the file.

    Raises:
        UserError: if the layout does not exist or cannot represent this network.
    """
    check_layout(config, layout)
    stored = str(dtype).removeprefix("torch.")
    if layout == "idlm":
        return {
            **config.to_diff_dict(),
            "model_type": config.model_type,
            "architectures": [DiffusionLM.__name__],
            "dtype": stored,
        }
    published: dict[str, Any] = {
        **{name: getattr(config, name) for name in SIZES},
        "return_dict": False,
        "torch_dtype": stored,
        "transformers_version": transformers.__version__,
    }
    if layout == "mdlm":
        return {
            **published,
            "model_type": "mdlm",
            "architectures": ["MDLM"],
            "time_conditioning": config.time_conditioning,
            # `repository--module.Class`: the authors' own files, where trust_remote_code allows
            "auto_map": {
                "AutoConfig": "kuleshov-group/mdlm-owt--configuration_mdlm.MDLMConfig",
                "AutoModelForMaskedLM": "kuleshov-group/mdlm-owt--modeling_mdlm.MDLM",
            },
        }
    return {
        **published,
        "model_type": "DUO",
        "architectures": ["DUO"],
        "causal": False,
        "var_min": True,
    }


def check_layout(config: DiffusionConfig, layout: str) -> None:
    """Refuse a layout that would lose something of the network or its process.

    Raises:
        UserError: naming what has no place in the layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if layout == "idlm":
        return
    process = _PROCESS[layout]
    if config.process != process:
        raise UserError(
            f"layout {layout!r} is for the {process} process and this checkpoint's is "
            f"{config.process}; choose layout 'idlm'"
        )
    if (config.schedule, config.schedule_eps) != _SCHEDULE:
        raise UserError(
            f"layout {layout!r} has no place for the schedule {config.schedule!r} with "
            f"schedule_eps {config.schedule_eps} (its readers take log-linear with 0.001); "
            "choose layout 'idlm'"
        )
    if layout == "duo" and not config.time_conditioning:
        raise UserError(
            "layout 'duo' always conditions on time and this network never does; "
            "choose layout 'idlm'"
        )
    if config.latent_global or config.latent_position:
        raise UserError(
            f"layout {layout!r} has no place for this generator's latent (latent_global "
            f"{config.latent_global}, latent_position {config.latent_position}): choose layout "
            "'idlm', or fix the latent at zero, which costs diversity (idlm export --latent zero)"
        )


@torch.no_grad()
def fix_latent_at_zero(model: DiffusionLM) -> DiffusionLM:
    """The generator at epsilon = 0, exactly, as a network without latent.

    Position noise of zero adds nothing. A global vector of zero adds a constant to every adaLN,
    which its bias takes over. The mixture over epsilon collapses to one component: what is left
    is the network at the mode of the prior, not its marginal.

    Args:
        model: any network; one without latent is returned as it is.
    """
    latent = model.backbone.latent
    if latent is None:
        return model
    fixed = model.with_latent(latent_global=0, latent_position=0)
    fixed.name_or_path = model.name_or_path
    if latent.embed is None:
        return fixed
    # float64, so that the sum is rounded once
    silent = torch.zeros(1, model.config.latent_global, dtype=torch.float64, device=model.device)
    added = copy.deepcopy(latent).double().modulations(silent)
    layers = [cast(Block, block).adaLN_modulation for block in fixed.backbone.blocks]
    layers.append(fixed.backbone.output_layer.adaLN_modulation)
    for layer, more in zip(layers, added, strict=True):
        layer.bias.copy_(layer.bias.double() + more.squeeze(0))
    return fixed
