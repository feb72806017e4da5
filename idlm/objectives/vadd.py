"""VADD: a masked denoiser with a latent variable, trained as a variational autoencoder.

"Variational Autoencoding Discrete Diffusion with Enhanced Dimensional Correlations Modeling",
arXiv 2505.17384 (methods F). Given a latent z ~ N(0, I) the tokens of one step are independent;
over z they are not, so that one step can write tokens that agree. A recognition network
r_phi(z | x0, x_t) makes the likelihood tractable, and only in training.

The paper was not available in full. Unconfirmed there, and chosen here: the KL in closed form
instead of one sample of log r - log p (the same expectation, less variance); the length of the
annealing; how z joins the time (own adaLN rows, see :class:`idlm.models.dit.LatentMap`); what
:class:`~idlm.models.recognition.Recognition` lists. Not in the paper: several latents per sequence;
times of at least 0.001, so that the weight is finite. Losses are sums that the caller divides by
the number of tokens.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from idlm.errors import UserError
from idlm.models.modeling import DiffusionLM
from idlm.models.recognition import Posterior, Recognition
from idlm.objectives.base import DistillationObjective, Draw, LossSum, Networks, Trains, mean
from idlm.objectives.divergences import log_mean_exp
from idlm.objectives.latent_likelihood import (
    at_least_one,
    corrupt,
    log_likelihood,
    posterior_noise,
)
from idlm.objectives.pairing import check_pairing

# nats of KL above which a dimension of z counts as used
ACTIVE = 0.01


class VADD(DistillationObjective):
    """The annealed double ELBO of the paper (DELBO, methods F.2).

    In nats and per sequence it is, at one time t and for one z,

        w(t) [ -log p_theta(x0 | x_t, z) + lambda KL(r_phi(z | x0, x_t) || N(0, I)) ],  z ~ r_phi.

    theta and phi are updated together, and gradient reaches phi through z, too. The data alone
    teaches: the teacher gives the student its first weights, if any, and takes no part in the loss.

    A Gaussian r cannot follow every posterior, and what it misses the student has to give up: at
    the optimum for two equal bits, one step writes equal ones with probability 0.89, not 1. With
    ``samples`` K > 1 the loss is the importance-weighted bound (Burda et al., arXiv 1509.00519)

        -w(t) log mean_k exp( log p_theta(x0 | x_t, z_k) - lambda log r_phi(z_k) / p(z_k) ),

    tighter, hence closer to the joint law (above 0.95 for K = 4), at K times the cost.

    For lambda 1 both bound E w(t) [-log p_theta(x0 | x_t)]. That is no bound on -log p(x0):
    compare likelihoods by :func:`idlm.objectives.latent_likelihood.marginal_nelbo`.

    The logs hold ``reconstruction``, the first term in nats per token; ``kl``, the mean KL in nats
    per sequence, unweighted; ``active_dimensions``, how many dimensions of z have a mean KL above
    0.01 nats in this micro batch; and ``kl_weight``, lambda. A ``kl`` near 0 means z is ignored.

    Args:
        kl_warmup: updates over which lambda rises linearly from 0 to 1; 0 for lambda 1 throughout.
            It has to outlast the time in which the student learns to use z: until then the KL is
            all that AdamW sees of phi. Where a loss is only measured lambda is 1.
        samples: latents per sequence in the loss; 1 as in the paper.

    Raises:
        UserError: for a value outside what is listed.
    """

    processes: ClassVar[tuple[str, ...]] = ("absorbing",)
    trains: ClassVar[Trains] = "jointly"
    shardable: ClassVar[bool] = True
    latent: ClassVar[tuple[int, int]] = (64, 0)

    def __init__(self, *, kl_warmup: int = 10_000, samples: int = 1) -> None:
        if kl_warmup < 0:
            raise UserError(
                f"kl_warmup is {kl_warmup}; it is a number of updates, 0 for no annealing"
            )
        self.kl_warmup = kl_warmup
        self.samples = at_least_one(samples)

    def check(self, teacher: DiffusionLM, student: DiffusionLM) -> None:
        """Refuse a student whose noise the recognition network does not infer.

        Raises:
            UserError: without a latent vector, or with noise per position.
        """
        vector, position = student.config.latent_global, student.config.latent_position
        if not vector or position:
            raise UserError(
                f"VADD infers one latent vector per sequence, but the student has latent_global "
                f"{vector} and latent_position {position}; set latent_global to its size, for "
                "instance 64, and latent_position to 0"
            )

    def make_auxiliary(self, teacher: DiffusionLM, student: DiffusionLM) -> nn.Module:
        """The recognition network, from the student's weights."""
        return Recognition.from_student(student)

    def kl_weight(self, draw: Draw) -> float:
        """lambda at the update that ``draw`` names."""
        if not draw.training or draw.step >= self.kl_warmup:
            return 1.0
        return draw.step / self.kl_warmup

    def student_loss(self, networks: Networks, tokens: Tensor, draw: Draw) -> LossSum:
        """The bound summed over the batch, in nats; gradient reaches theta and phi."""
        student, recognition = networks.student, cast(Recognition, networks.auxiliary)
        check_pairing(self, student.process)
        state = corrupt(student, tokens, draw)
        posterior = recognition(tokens, state.masked)
        z = posterior.sample(posterior_noise(draw, posterior.mean, self.samples))
        spread, per_token = log_likelihood(student, state, z)
        scores, kl, weight = per_token.sum(-1), posterior.kl(), self.kl_weight(draw)
        if self.samples == 1:
            bound = scores.squeeze(1) - weight * kl.sum(-1)
        else:
            bound = importance_weighted(posterior, z, scores, weight)
        with torch.no_grad():
            logs = {
                "student_entropy": mean(spread),
                "reconstruction": -(state.weight * scores.mean(1)).sum() / tokens.numel(),
                "kl": kl.sum(-1).mean(),
                "active_dimensions": (kl.mean(0) > ACTIVE).to(kl.dtype).sum(),
                "kl_weight": kl.new_tensor(weight),
            }
        asked = spread.shape[0] // self.samples
        return LossSum(-(state.weight * bound).sum(), tokens.numel(), logs, asked=asked)


def importance_weighted(posterior: Posterior, z: Tensor, scores: Tensor, weight: float) -> Tensor:
    """log mean_k exp(scores_k + weight (log p(z_k) - log r(z_k))), ``[B]`` in nats.

    The plain gradient of phi drowns in noise as K grows. This one goes through z alone, doubly
    reparameterised (Tucker et al., arXiv 1810.04003): the same expectation, here for any weight.

    Args:
        posterior: r.
        z: its samples ``[B, K, G]``; a hook is left on them.
        scores: log-likelihoods given z, ``[B, K]``.
        weight: lambda.
    """
    fixed = Posterior(posterior.mean.detach(), posterior.log_std.detach())
    values = scores + weight * fixed.log_weight(z)
    if z.requires_grad:
        share = torch.softmax(values.detach(), dim=1).unsqueeze(-1)
        z.register_hook(lambda gradient: gradient * (1 - weight + weight * share))
    return log_mean_exp(values, 1)
