"""The `auto_map` of the published layout leads transformers to the authors' own files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from idlm.models import DiffusionLM, export_folder

Make = Callable[..., DiffusionLM]
REPOSITORY = "models--kuleshov-group--mdlm-owt"
# stand in for the authors' files, which say who they are; what they compute is tested elsewhere
CONFIGURATION = """
from transformers import PretrainedConfig

class MDLMConfig(PretrainedConfig):
    model_type = "mdlm"

    def __init__(self, cond_dim=129, **kwargs):
        super().__init__(**kwargs)
        self.cond_dim = cond_dim
"""
MODELING = """
import torch
from transformers import PreTrainedModel
from .configuration_mdlm import MDLMConfig

class MDLM(PreTrainedModel):
    config_class = MDLMConfig

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(config.cond_dim))
        self.post_init()
"""
READ = """
import sys
from transformers import AutoModelForMaskedLM, AutoConfig

config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForMaskedLM.from_config(config, trust_remote_code=True)
print(type(model).__module__.split(".")[-1], type(model).__name__, model.weight.numel())
print("idlm" in sys.modules)
"""


def test_transformers_without_idlm_takes_the_authors_classes(make: Make, tmp_path: Path) -> None:
    folder = export_folder(make(), tmp_path / "out", layout="mdlm")
    commit = "0" * 40
    snapshot = tmp_path / "hub" / REPOSITORY / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "configuration_mdlm.py").write_text(CONFIGURATION)
    (snapshot / "modeling_mdlm.py").write_text(MODELING)
    refs = tmp_path / "hub" / REPOSITORY / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    places = {"HF_HUB_CACHE": "hub", "HF_MODULES_CACHE": "modules", "HF_HOME": "home"}
    result = subprocess.run(
        [sys.executable, "-c", READ, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}
        | {name: str(tmp_path / place) for name, place in places.items()},
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "modeling_mdlm MDLM 8\nFalse\n"
