"""transformers' Auto classes after ``import idlm``: the same network, as strictly, and no code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import idlm
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, export_folder
from idlm.models.config import FIELDS
from tests.models.test_loading import ROTARY, duo, publish, weights_of
from tests.models.test_tokenizers import words

Make = Callable[..., DiffusionLM]
LAYOUTS = pytest.mark.parametrize("layout", ["idlm", "mdlm", "DUO"])


def write(make: Make, folder: Path, layout: str) -> Path:
    if layout == "idlm":
        return export_folder(make().with_latent(latent_global=3, latent_position=2), folder)
    return publish(duo(make) if layout == "DUO" else make(), folder)


def run(code: str) -> str:
    """Output of a fresh interpreter that nobody can answer a question to."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_idlm_imports_neither_torch_nor_transformers() -> None:
    heavy = "{'torch', 'transformers', 'safetensors', 'huggingface_hub', 'numpy'}"
    assert run(f"import idlm, sys; print(sorted({heavy} & sys.modules.keys()))") == "[]\n"


@LAYOUTS
def test_auto_model_gives_the_logits_of_idlm_load_in_eval_mode(
    make: Make, tokens: Tensor, tmp_path: Path, layout: str
) -> None:
    folder = write(make, tmp_path / "it", layout)
    ours = idlm.load(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert isinstance(model, DiffusionLM)
    assert not model.training
    assert (model.process.name, model.dtype) == (ours.process.name, torch.float32)
    for loaded in (model, DiffusionLM.from_pretrained(str(folder))):
        torch.manual_seed(1)  # a generator draws its latent
        first = ours(tokens, torch.tensor([0.3, 2.0])).logits
        torch.manual_seed(1)
        assert torch.equal(loaded(tokens, torch.tensor([0.3, 2.0])).logits, first)
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, DiffusionConfig)
    assert all(getattr(config, name) == getattr(ours.config, name) for name in FIELDS)


@pytest.mark.parametrize(
    "imports",
    [
        "from transformers import AutoModelForMaskedLM; import idlm",
        "import idlm.models.modeling; from transformers import AutoTokenizer, AutoModelForMaskedLM",
    ],
)
def test_the_order_of_imports_does_not_matter(make: Make, tmp_path: Path, imports: str) -> None:
    folder = publish(make(), tmp_path / "mdlm")
    code = f"{imports}; print(type(AutoModelForMaskedLM.from_pretrained({str(folder)!r})).__name__)"
    assert run(code) == "DiffusionLM\n"


def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(make: Make, tmp_path: Path) -> None:
    folders = [str(write(make, tmp_path / layout, layout)) for layout in ("idlm", "mdlm", "DUO")]
    for folder in map(Path, folders):
        words(7).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    said = run(
        "import idlm\n"
        "from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer\n"
        f"for folder in {folders!r}:\n"
        "    for given in ({}, {'trust_remote_code': True}):\n"
        "        AutoConfig.from_pretrained(folder, **given)\n"
        "        model = AutoModelForMaskedLM.from_pretrained(folder, **given)\n"
        "        tokenizer = AutoTokenizer.from_pretrained(folder, **given)\n"
        "        print(type(model).__module__, len(tokenizer))\n"
    )
    assert said == 6 * "idlm.models.modeling 7\n"  # no question and no warning between them
    assert not (tmp_path / "ran").exists()


@LAYOUTS
def test_auto_model_is_strict(make: Make, tmp_path: Path, layout: str) -> None:
    folder = write(make, tmp_path / "it", layout)
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["backbone.blocks.0.attn_qkv.weight"]
    weights["extra"] = torch.ones(1)
    save_file(weights, file)
    with pytest.raises(UserError, match=r"missing: backbone.*attn_qkv.*; unexpected: extra"):
        AutoModelForMaskedLM.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["cond_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    for read in (AutoConfig, AutoModelForMaskedLM, AutoTokenizer):
        with pytest.raises(UserError, match="lacks cond_dim"):
            read.from_pretrained(folder)


def test_wrapped_names_and_absent_frequencies_load_through_auto_model(
    make: Make, tokens: Tensor, tmp_path: Path
) -> None:
    model = make()
    weights = {f"_orig_mod.{n}": w for n, w in weights_of(model).items() if n != ROTARY}
    loaded = AutoModelForMaskedLM.from_pretrained(publish(model, tmp_path / "mdlm", weights))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_precision_is_fp32_unless_asked_for(make: Make, tmp_path: Path) -> None:
    folder = export_folder(make(), tmp_path / "half", dtype=torch.float16)
    read = AutoModelForMaskedLM.from_pretrained
    assert read(folder).dtype == torch.float32
    assert read(folder, dtype="auto").dtype == torch.float16
    assert read(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert read(folder, torch_dtype=torch.float64, device_map="cpu").dtype == torch.float64
    assert read(folder, device_map={"": "cpu"}).device.type == "cpu"
    assert read(folder, attn_implementation="sdpa").dtype == torch.float32
    with pytest.raises(UserError, match=r"one given beside it .*half precision"):
        read(folder, dtype="half precision")
    with pytest.raises(UserError, match="dtype is 'int8'; use float32"):
        DiffusionLM.from_pretrained(folder, dtype="int8")


def test_arguments_without_effect_are_refused(make: Make, tmp_path: Path) -> None:
    folder = export_folder(make(), tmp_path / "own")
    with pytest.raises(UserError, match=r"got quantization_config, variant, which has no effect"):
        DiffusionLM.from_pretrained(folder, variant="fp16", quantization_config={"bits": 4})
    with pytest.raises(UserError, match=r"device_map is .*put on one device, so name it"):
        AutoModelForMaskedLM.from_pretrained(folder, device_map={"backbone": "cpu", "head": "cpu"})
    with pytest.raises(UserError, match="device 'gpu' is unknown"):
        AutoModelForMaskedLM.from_pretrained(folder, device_map="gpu")


def test_save_pretrained_states_every_field_and_comes_back(
    make: Make, tokens: Tensor, tmp_path: Path
) -> None:
    # of MDLM's own sizes only those that differ from a class default would be written
    model = make(cond_dim=128, n_blocks=1)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config[name] for name in FIELDS} == {
        name: getattr(model.config, name) for name in FIELDS
    }
    for loaded in (idlm.load(tmp_path), AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_what_is_registered_leaves_other_models_alone(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=9, intermediate_size=16, **sizes)).save_pretrained(
        tmp_path
    )
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path), BertForMaskedLM)
