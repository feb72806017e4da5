"""IDLM on relaxed states: values against plain tables, gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import idlm
from idlm.bench import speed_plain
from idlm.errors import UserError
from idlm.models import DiffusionConfig, DiffusionLM, Embedded
from idlm.objectives import Draw, IDLMDuo, Networks
from idlm.objectives.duo_dcd import DuoDCD
from idlm.objectives.gammas import relaxation
from idlm.processes import GaussianRelaxation, Uniform
from idlm.random import Stream
from idlm.training import DistillationModule
from tests.tiny_models import make_models
from tests.training.helpers import QUIET, Record, copy_of, differs, trainer

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*"),
]

K, B, L = 3, 8, 2
TOKENS = torch.arange(B * L).reshape(B, L) % K


class Smooth(nn.Module):
    """A denoiser of relaxed states: mixes both positions' softmax(scores); smooth in its input.

    Args:
        seed: of its weights.
        blind: ignore the input, so that the output is a table of logits ``[L, K]``.
    """

    dtype = torch.float64

    def __init__(self, seed: int, *, blind: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (L, K, 0 if blind else L * K)
        self.mix = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(L, K, generator=generator, dtype=torch.float64))
        self.process = Uniform(K)
        self.blind = blind
        self.scores: list[Tensor] = []
        self.sigmas: list[Tensor] = []

    def sample_latent(self, sample: Tensor, length: int, *, seed: int, step: int) -> None:
        return None

    def embedder(self) -> Callable[[Tensor], Tensor]:
        def embed(scores: Tensor) -> Tensor:
            self.scores.append(scores.detach())
            return scores.softmax(-1)

        return embed

    def features(self, state: Any, sigma: Tensor, latent: Any = None) -> Tensor:
        soft = state.states if isinstance(state, Embedded) else state.softmax(-1)
        self.sigmas.append(sigma)
        if self.blind:
            return self.bias.expand(len(soft), L, K)
        soft = soft.flatten(1)
        return torch.einsum("bi,lki->blk", soft, self.mix) + self.bias

    def head(self, hidden: Tensor) -> Tensor:
        return 2 * hidden


def draw_of(n: int = B, *, step: int = 0) -> Draw:
    return Draw(torch.arange(n), n, 0, step)


def trio(*, blind: bool = False) -> Networks:
    return Networks(Smooth(1), Smooth(2, blind=blind), Smooth(3))


def objective(**settings: Any) -> IDLMDuo:
    """tau large enough for the inputs to be smooth, noise large enough for K = 3."""
    return IDLMDuo(**{"gamma_min": -2.0, "gamma_max": 2.0, "tau": 0.5, **settings})


def plain_student_loss(networks: Networks, draw: Draw, *, detach: bool = False) -> Tensor:
    """Step by step as methods C.4 writes it, on whole tables."""
    relaxation = GaussianRelaxation(K, gamma_min=-2.0, gamma_max=2.0)
    process = Uniform(K, relaxation)
    t_in = draw.times(Stream.TIME).double()
    t = draw.times(Stream.TIME_2, permuted=True).double()
    xi, xi_again = (
        draw.normal(L, K, stream=stream, dtype=torch.float64)
        for stream in (Stream.RELAX, Stream.RELAX_RENOISE)
    )

    def noised(x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        gamma = (-2.0 + 4.0 * time)[:, None, None]
        return gamma.neg().sigmoid().sqrt() * x + gamma.sigmoid().sqrt() * noise

    def log_p(model: Any, w: Tensor, time: Tensor) -> Tensor:
        sigma = -relaxation.alpha(time).log()
        return model.head(model.features(w / 0.5, sigma)).log_softmax(-1)

    g = log_p(networks.student, noised(nn.functional.one_hot(TOKENS, K), t_in, xi), t_in).exp()
    w = noised(g.detach() if detach else g, t, xi_again)
    z = w.argmax(-1)
    first, second = (
        process.nll_per_token(log_p(model, w, t), g, z, t)
        for model in (networks.teacher, networks.fake)
    )
    return (first - second).sum()


@pytest.mark.parametrize("detach", [False, True])
def test_the_student_loss_is_the_plain_one_in_value_and_gradient(detach: bool) -> None:
    mine, plain = trio(), trio()
    total = objective(detach_state=detach).student_loss(mine, TOKENS, draw_of()).total
    total.backward()
    expected = plain_student_loss(plain, draw_of(), detach=detach)
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)  # fp64
    for name in ("mix", "bias"):
        ours, theirs = (getattr(n.student, name).grad for n in (mine, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for model in (mine.teacher, mine.fake):
        assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_gradient_through_the_relaxed_state_is_that_of_finite_differences() -> None:
    """Fixed noise; a student whose output is a table of logits, each of which is moved."""
    networks, step = trio(blind=True), 1e-5
    logits = networks.student.bias

    def loss() -> Tensor:
        return objective().student_loss(networks, TOKENS, draw_of()).total

    loss().backward()
    differences = torch.zeros_like(logits)
    with torch.no_grad():
        for i in range(L * K):
            here = logits.view(-1)
            values = []
            for sign in (1, -1):
                here[i] += sign * step
                values.append(loss())
                here[i] -= sign * step
            differences.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    # second-order differences in fp64; no argmax changes within the step
    torch.testing.assert_close(logits.grad, differences, rtol=1e-6, atol=1e-6)
    # and what the ablation leaves out is a good part of it
    networks.student.zero_grad()
    objective(detach_state=True).student_loss(networks, TOKENS, draw_of()).total.backward()
    assert float((logits.grad - differences).abs().max()) > 0.05 * float(differences.abs().max())


def test_teacher_equal_to_fake_gives_no_loss_and_no_gradient() -> None:
    teacher, student, _ = trio()
    loss = objective().student_loss(Networks(teacher, student, teacher), TOKENS, draw_of())
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert not any(bool(p.grad.any()) for p in student.parameters())


def test_the_auxiliary_loss_is_the_nelbo_of_the_students_output() -> None:
    """Its value by the difference of the student's loss, its gradient on the fake model alone."""
    networks = trio()
    mine = objective()
    fake = mine.auxiliary_loss(networks, TOKENS, draw_of())
    fake.total.backward()
    teacher = mine.auxiliary_loss(networks._replace(auxiliary=networks.teacher), TOKENS, draw_of())
    difference = mine.student_loss(networks, TOKENS, draw_of()).total
    torch.testing.assert_close(teacher.total - fake.total, difference, rtol=1e-10, atol=1e-12)
    assert fake.total.item() > 0
    assert float(fake.logs["fake_nelbo"]) == pytest.approx(fake.mean.item(), rel=1e-12)
    for model, trained in zip(networks, (False, False, True), strict=True):
        assert all((p.grad is not None) == trained for p in model.parameters())


def test_the_fake_model_is_at_its_optimum_where_it_is_the_students_output() -> None:
    networks = trio(blind=True)
    fake = Smooth(2, blind=True)
    loss = objective().auxiliary_loss(networks._replace(auxiliary=fake), TOKENS, draw_of())
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0, abs=1e-10)  # fp64; the NELBO of soft data is 0
    assert float(fake.bias.grad.abs().max()) < 1e-10


def test_networks_see_scores_and_the_time_of_the_argmaxs_process() -> None:
    networks, mine = trio(), objective()
    mine.student_loss(networks, TOKENS, draw_of())
    made = mine.generate(networks.student, TOKENS, draw_of())
    state = mine.relax(networks.student, made, [networks.fake], draw_of())
    _, w, z, _ = speed_plain._relax(mine, networks.student, TOKENS, draw_of())
    relaxation = GaussianRelaxation(K, gamma_min=-2.0, gamma_max=2.0)
    for model in (networks.teacher, networks.fake):
        torch.testing.assert_close(model.scores[0], w.detach() / 0.5)
        [sigma] = model.sigmas
        torch.testing.assert_close(sigma, -relaxation.alpha(state.time).log())
    w_in, sigma = networks.student.scores[0], networks.student.sigmas[0]
    assert not torch.equal(w_in, w.detach() / 0.5)
    assert torch.equal(made.z, w_in.argmax(-1))
    times = draw_of().times(Stream.TIME).double()
    torch.testing.assert_close(sigma, -relaxation.alpha(times).log())
    assert torch.equal(state.z, z)
    assert not state.z.requires_grad


def test_without_noise_the_student_sees_its_data_and_is_judged_on_its_output() -> None:
    """gamma near -30: softmax of the input picks the token, the state's argmax is G's."""
    mine = IDLMDuo(gamma_min=-30.0, gamma_max=-29.0, tau=1e-3)
    student, reader = Smooth(2), Smooth(3)
    made = mine.generate(student, TOKENS, draw_of())
    state = mine.relax(student, made, [reader], draw_of())
    expected = nn.functional.one_hot(TOKENS, K).double()
    torch.testing.assert_close(student.scores[0].softmax(-1), expected, atol=1e-12, rtol=0)
    assert float(student.sigmas[0].abs().max()) < 1e-12
    g = student.head(made.hidden).softmax(-1)
    assert torch.equal(state.z, g.argmax(-1))
    torch.testing.assert_close(1e-3 * reader.scores[0], g, atol=1e-5, rtol=0)


def test_the_range_of_gamma_gives_every_vocabulary_the_published_alphas() -> None:
    """0.945 to 0.049 (methods B.3), which -3.55 and -1.85 give to 50,257 states alone."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for kind, published, alphas in (
        (IDLMDuo, (-3.55, -1.85), (0.945470, 0.049319)),
        (DuoDCD, (-4.0, -1.0), (0.998694, 0.006186)),
    ):
        for size in (2, 6, 2048, 50257):
            schedule = relaxation(kind().gammas, published, size)
            assert schedule.vocab_size == size
            # the published table has steps of 4e-5 in gamma
            assert schedule.alpha(ends).tolist() == pytest.approx(alphas, abs=1e-5)
        found = schedule.gamma_min, schedule.gamma_max
        assert found == pytest.approx(published, abs=1e-9)
        given = kind(gamma_min=-2.0, gamma_max=3.0)
        schedule = relaxation(given.gammas, published, 6)
        assert (schedule.gamma_min, schedule.gamma_max) == (-2.0, 3.0)
    # and the objectives use them: six states see noise, which the published numbers keep from them
    networks = Networks(Smooth(1), Smooth(2), Smooth(3))
    for mine, least in ((IDLMDuo(), 0.049319), (IDLMDuo(gamma_min=-3.55, gamma_max=-1.85), 0.9)):
        _, schedule = mine.process(networks.student)
        assert float(schedule.alpha(ends)[1]) == pytest.approx(least, abs=0.02)
    assert DuoDCD().relaxation(K).gamma_max > 2


def test_tied_times_share_their_strata_and_independent_ones_do_not() -> None:
    n = 64
    for how, apart in (("tied", False), ("independent", True)):
        first, second = objective(time_draws=how).times(draw_of(n))
        assert torch.equal(first, draw_of(n).times(Stream.TIME).double())
        assert (float((second - first).abs().max()) > 1 / n) == apart


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    for name, trained in (("student_loss", 1), ("auxiliary_loss", 2)):
        gradients = []
        for cuts in ([(0, B)], [(0, 3), (3, B)]):
            networks = trio()
            for a, b in cuts:
                draw = Draw(torch.arange(a, b), B, 0, 0)
                getattr(objective(), name)(networks, TOKENS[a:b], draw).total.backward()
            gradients.append(networks[trained].mix.grad)
        torch.testing.assert_close(*gradients)  # fp64


def test_a_real_generator_learns_through_both_losses() -> None:
    """The network itself in fp32 at the published settings, latent included."""
    config = DiffusionConfig(
        vocab_size=7,
        model_length=8,
        hidden_dim=8,
        cond_dim=4,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        process="uniform",
        time_conditioning=True,
    )
    teacher = DiffusionLM(config)
    for weight in teacher.parameters():
        nn.init.normal_(weight, std=0.5)
    student = teacher.with_latent(latent_global=3, latent_position=3)
    fake = teacher.with_latent(latent_global=0, latent_position=0)
    teacher.requires_grad_(False)
    networks, tokens = Networks(teacher, student, fake), torch.randint(0, 7, (16, 8))
    # all three agree at step 0, so there is nothing to learn from the teacher yet
    assert IDLMDuo().student_loss(networks, tokens, draw_of(16)).total.item() == 0.0
    IDLMDuo().auxiliary_loss(networks, tokens, draw_of(16)).total.backward()
    with torch.no_grad():
        for weight in fake.parameters():
            weight -= 1e-3 * weight.grad
    fake.zero_grad()
    again = [IDLMDuo().student_loss(networks, tokens, draw_of(16)).total for _ in range(2)]
    assert torch.equal(again[0], again[1])
    again[0].backward()
    assert float(student.backbone.latent.position.weight.grad.abs().max()) > 0
    assert all(p.grad is None for model in (teacher, fake) for p in model.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in fake.parameters())


def test_a_teacher_distilled_by_dcd_is_exported_and_distilled_again(tmp_path: Path) -> None:
    """IDLM-DCD from end to end: rounds of DCD, an export, and updates of IDLM from that folder."""
    models = make_models(tmp_path / "models")
    config = DiffusionConfig(
        vocab_size=300,
        model_length=8,
        hidden_dim=16,
        cond_dim=8,
        n_blocks=1,
        n_heads=2,
        dropout=0.0,
        process="uniform",
        time_conditioning=True,
    )
    first = DiffusionLM(config)
    for weight in first.parameters():
        nn.init.normal_(weight, std=0.3)
    before = copy_of(first)
    rows: Any = [
        {"input_ids": torch.randint(0, 300, (8,)), "index": torch.tensor(i)} for i in range(32)
    ]
    data: DataLoader[dict[str, Tensor]] = DataLoader(rows, batch_size=4)
    dcd = DistillationModule.from_networks(
        first,
        DuoDCD(num_steps=8, round_updates=2),
        tokenizer=str(models.teacher),
        max_student_updates=5,
        lr=1e-2,
        warmup=1,
        export_dir=str(tmp_path / "dcd"),
    )
    trainer(tmp_path).fit(dcd, data)
    made = copy_of(idlm.load(tmp_path / "dcd"))
    assert len(differs(made, before)) > 5
    assert dcd.objective.round == 2

    module = DistillationModule(
        str(tmp_path / "dcd"),
        IDLMDuo(),
        latent_global=0,
        latent_position=0,
        max_student_updates=2,
        lr=1e-3,
        fake_lr=1e-2,
        warmup=1,
    )
    record = Record()
    trainer(tmp_path, record).fit(module, data)
    assert differs(copy_of(module.teacher), made) == []
    for update in record.of_student():
        assert update["train/student_loss"] != 0
        assert update["train/student_grad_norm"] > 0
    student = idlm.load(tmp_path / "export")
    assert len(differs(copy_of(student), made)) > 5
    assert idlm.generate(student, 1, 8, 2, seed=0).tokens.shape == (1, 8)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tau": 0.0}, "tau is 0.0; it is a temperature above 0"),
        ({"gamma_min": 1.0}, "gamma_min is 1.0 and gamma_max is None; give both, or leave both"),
        (
            {"gamma_min": 1.0, "gamma_max": -1.85},
            "gamma_min is 1.0 and gamma_max is -1.85; choose gamma_min below",
        ),
        ({"time_draws": "both"}, "time_draws is 'both'; choose one of independent, tied"),
    ],
)
def test_settings_outside_the_method_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        IDLMDuo(**settings)


def test_the_absorbing_process_is_refused(table: Callable[..., Any]) -> None:
    networks = Networks(*(table(3, 2, seed=seed) for seed in (1, 2, 3)))
    for loss in (IDLMDuo().student_loss, IDLMDuo().auxiliary_loss):
        with pytest.raises(UserError, match=r"IDLMDuo is defined for the uniform process, but the"):
            loss(networks, TOKENS, draw_of())
