"""docs/extending.md: its Python runs as it stands, and its process is right."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import idlm
from idlm import processes, sampling
from idlm.cli.main import main
from idlm.errors import UserError
from idlm.metrics import NelboPerplexity
from idlm.models import DiffusionConfig, DiffusionLM
from idlm.paths import repo_dir
from idlm.processes import Absorbing, Process, Uniform
from idlm.schedules import LogLinear
from tests.training.helpers import QUIET, write_corpus

PAGE = (repo_dir() / "docs" / "extending.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
FILE = "# mymethod.py\n"

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:.*does not have many workers.*")]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Leave neither names nor the page's module behind."""
    tables: tuple[dict[str, Any], ...] = (processes._PROCESSES, sampling.SAMPLERS)
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    sys.modules.pop("mymethod", None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the page takes for granted."""
    (file,) = (block for block in PYTHON if block.startswith(FILE))
    (tmp_path / "mymethod.py").write_text(file)
    write_corpus(tmp_path / "notes.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(blocks: list[str]) -> dict[str, Any]:
    """What the blocks leave behind, one after the other in one namespace."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def test_the_python_of_the_page_runs_from_top_to_bottom(folder: Path) -> None:
    names = run([block for block in PYTHON if not block.startswith(FILE)])
    before, after = names["small"].state_dict(), names["student"].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (folder / "zipf" / "model.safetensors").exists()
    assert "zipf" in (folder / "zipf" / "README.md").read_text()


def test_the_method_of_the_page_runs_from_a_configuration(
    folder: Path,
) -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    words = shlex.split(block.replace("\\\n", " "))
    words[words.index("configs/tiny.yaml")] = str(repo_dir() / "configs" / "tiny.yaml")
    short = {"corpus": "notes.txt", "global_batch_size": "4", "max_eval_rows": "4"}
    given = [word for k, v in short.items() for word in (f"--data.init_args.{k}", v)]
    main([*words[1:], *given, "--model.init_args.max_student_updates", "1"])
    assert "MyMethod" in (folder / "runs" / "tiny" / "export" / "README.md").read_text()


def zipf(vocab_size: int) -> Any:
    """The page's process."""
    (block,) = (block for block in PYTHON if "class Zipf" in block)
    names: dict[str, Any] = {"__name__": "page", "torch": torch, "plain": lambda: None}
    exec(compile(block, "docs/extending.md", "exec"), names)
    return names["Zipf"](vocab_size, LogLinear())


def test_with_a_flat_law_the_process_of_the_page_is_the_uniform_one() -> None:
    process, uniform = zipf(5), Uniform(5, LogLinear())
    process.law = torch.full((5,), 0.2, dtype=torch.float64)
    x0, z = torch.randint(0, 5, (2, 3, 6))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    log_p = uniform.log_probs(torch.randn(3, 6, 5, dtype=torch.float64), z)
    for target in (x0, log_p.exp()):
        torch.testing.assert_close(
            process.nll_per_token(log_p, target, z, t), uniform.nll_per_token(log_p, target, z, t)
        )
        torch.testing.assert_close(
            process.posterior(target, z, t / 2, t), uniform.posterior(target, z, t / 2, t)
        )


def test_the_process_of_the_page_has_the_posterior_of_bayes_rule() -> None:
    process = zipf(3)
    alpha = process.schedule.alpha
    s, t = torch.tensor([0.3]).double(), torch.tensor([0.8]).double()
    law, eye = process.law, torch.eye(3).double()
    for x0 in range(3):
        for z in range(3):
            at_s = alpha(s) * eye[x0] + (1 - alpha(s)) * law
            kept = alpha(t) / alpha(s)
            joint = at_s * (kept * eye[z] + (1 - kept) * law[z])
            found = process.posterior(torch.tensor([[x0]]), torch.tensor([[z]]), s, t)[0, 0]
            torch.testing.assert_close(found, joint / joint.sum())
    noise = (torch.arange(3000).double() + 0.5).reshape(1, -1) / 3000
    tokens = process.corrupt(torch.zeros(1, 3000, dtype=torch.int64), t, noise)
    share = torch.bincount(tokens[0], minlength=3) / 3000
    expected = alpha(t) * eye[0] + (1 - alpha(t)) * law
    torch.testing.assert_close(share.double(), expected, atol=1e-3, rtol=0)


def tiny(process: str) -> DiffusionLM:
    sizes = {"hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2, "model_length": 6}
    model = DiffusionLM(DiffusionConfig(vocab_size=5, process=process, **sizes))
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight)
    return model


def test_a_sampler_that_is_given_takes_the_place_of_the_processs() -> None:
    seen = []

    def own(
        model: Any, tokens: Any, write: Any, sample: Any, settings: Any, **rest: Any
    ) -> tuple[Any, int]:
        seen.append((settings.temperature, sample.tolist()))
        return torch.where(write, 2, tokens), 3

    out = idlm.generate(
        tiny("absorbing"), 2, prompt=[1], temperature=0.5, seed=0, first_index=4, sampler=own
    )
    assert out.tokens.tolist() == [[1, 2, 2, 2, 2, 2]] * 2
    assert (out.nfe, seen) == (3, [(0.5, [4, 5])])
    with pytest.raises(UserError, match="chooses another sampler, but one is given"):
        idlm.generate(tiny("absorbing"), sampler=own, sampling_dtype="float32")
    assert len(seen) == 1


def test_a_process_of_ones_own_refuses_orders_and_tails_and_has_a_likelihood() -> None:
    zipf(5)
    model = tiny("zipf")
    assert not model.process.has_mask
    with pytest.raises(UserError, match="the zipf process has no order; leave order out"):
        idlm.generate(model, order="entropy")
    with pytest.raises(UserError, match="but the process of this model is 'zipf'; leave tail out"):
        idlm.generate(model, tail="greedy")
    metric = NelboPerplexity(model, draws=2, interval="whole")
    metric.update(torch.randint(0, 5, (4, 6)))
    found = metric.details()
    assert found["failed_rows"] == 0
    # an upper bound of what no model can be below on random tokens, less the luck of 24 of them
    assert found["nats_per_token"] > 0.8


class Named(Absorbing):
    name = "named"


def test_a_process_that_is_registered_is_made_and_sampled_by_its_name() -> None:
    assert processes.register(Named) is Named
    made = processes.make_process("named", 7, schedule="cosine")
    assert (type(made), made.vocab_size, made.schedule.name) == (Named, 7, "cosine")
    with pytest.raises(UserError, match=r"'named', which has no sampler; .* absorbing, uniform"):
        sampling.registry.sampler_for(made)
    sampling.register("named", sampling.sample_ancestral)
    assert sampling.registry.sampler_for(made) is sampling.sample_ancestral
    with pytest.raises(UserError, match="is 'x'; choose one of absorbing, named, uniform"):
        processes.make_process("x", 7)


def test_a_definition_that_is_run_again_takes_its_own_place() -> None:
    first = processes.register(Named)
    again = processes.register(type("Named", (Absorbing,), dict(vars(first))))
    assert again is not first
    assert type(processes.make_process("named", 5)) is again


@pytest.mark.parametrize("name", ["absorbing", "uniform", "gaussian"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    kind = type("Other", (Absorbing,), {"name": name})
    with pytest.raises(UserError, match=f"the name '{name}' of the process Other is taken"):
        processes.register(kind)
    assert processes.process_class("uniform") is Uniform


@pytest.mark.parametrize("name", ["", "Named", "a b", "1st", None, 3])
def test_a_malformed_name_is_refused(name: Any) -> None:
    kind = type("Other", (Absorbing,), {"name": name})
    with pytest.raises(UserError, match=f"has the name {name!r}; choose lower-case letters"):
        processes.register(kind)


def test_what_is_no_process_or_sampler_is_refused() -> None:
    nothing: Any = int
    with pytest.raises(UserError, match="<class 'int'> is no process; register a subclass"):
        processes.register(nothing)
    with pytest.raises(UserError, match="process is 'zipf'; choose one of absorbing, uniform"):
        sampling.register("zipf", sampling.sample_ancestral)
    with pytest.raises(UserError, match=r"'uniform' has a sampler; give another to idlm\.generate"):
        sampling.register("uniform", sampling.sample_ancestral)
    processes.register(Named)
    with pytest.raises(UserError, match="the sampler 3 cannot be called"):
        sampling.register("named", 3)  # type: ignore[arg-type]


def test_processes_without_a_name_are_refused() -> None:
    class Nameless(Process):
        pass

    with pytest.raises(UserError, match="Nameless has the name None"):
        processes.register(Nameless)
