"""Which metrics ``idlm evaluate`` computes, their options, and the objects that compute them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from idlm.errors import UserError

if TYPE_CHECKING:
    from idlm.metrics import Evaluator, GenerativePerplexity, GradientMoment, Mauve
    from idlm.metrics.report import SampleSet
    from idlm.sampling.sharded import Processes

EVALUATOR = "gpt2-large"
HALF_BATCH = 4
# option, the metric it belongs to, lowest value
_BELONGS = (
    ("half_batch", "gradient_moment", 1),
    ("mauve_seeds", "mauve", 0),
    ("mauve_clusters", "mauve", 2),
    ("mauve_scaling", "mauve", None),
    ("mauve_min_samples", "mauve", 2),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--metrics`` and what belongs to single metrics."""
    group = parser.add_argument_group("metrics (docs/metrics.md)")
    group.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="gen_ppl, entropy, entropy_pooled, distinct_N, seq_rep_N, longest_repeat, "
        "self_bleu_N; against --reference: mauve, gradient_moment (default: gen_ppl entropy "
        "entropy_pooled distinct_2); entropy is always among them",
    )
    group.add_argument(
        "--half-batch",
        type=int,
        help=f"of gradient_moment: rows of half a batch (default: {HALF_BATCH})",
    )
    group.add_argument(
        "--mauve-seeds", nargs="+", type=int, metavar="SEED", help="of k-means (default: 1 2 3 4 5)"
    )
    group.add_argument(
        "--mauve-clusters", type=int, help="of k-means (default: a tenth of the samples)"
    )
    group.add_argument("--mauve-scaling", type=float, help="of the divergences (default: 5)")
    group.add_argument(
        "--mauve-min-samples",
        type=int,
        help="refuse mauve on fewer samples or reference rows than this (default: 1000)",
    )


def check_options(args: argparse.Namespace) -> tuple[str, ...]:
    """The metrics that are asked for; ``args.evaluator`` is filled in where one is needed.

    Raises:
        UserError: if a name or number is wrong, or an option would do nothing.
    """
    from idlm.metrics.registry import (
        AGAINST_REFERENCE,
        DEFAULT_METRICS,
        EVALUATOR_METRICS,
        check_metrics,
    )

    names = check_metrics(DEFAULT_METRICS if args.metrics is None else args.metrics)
    for name, metric, low in _BELONGS:
        value, option = getattr(args, name), "--" + name.replace("_", "-")
        if value is not None and metric not in names:
            raise UserError(f"{option} is of {metric}, which --metrics does not name; add it there")
        if low is not None and value is not None and min(_listed(value)) < low:
            raise UserError(f"{option} is {value}: it must be {low} or more")
    if args.mauve_scaling is not None and not args.mauve_scaling > 0:
        raise UserError(f"--mauve-scaling is {args.mauve_scaling}: it must be above 0")
    against = [name for name in names if name in AGAINST_REFERENCE]
    if against and not args.reference:
        raise UserError(
            f"--metrics {against[0]} compares with real text: give --reference FILE or a corpus"
        )
    if not set(names) & set(EVALUATOR_METRICS) and args.evaluator is not None:
        raise UserError(
            f"--evaluator judges {', '.join(EVALUATOR_METRICS)}, and --metrics names none of them; "
            "leave it out"
        )
    if "mauve" in names:
        _check_mauve(args)
    args.evaluator = args.evaluator or EVALUATOR
    return names


def reads_text(args: argparse.Namespace, names: Sequence[str]) -> bool:
    """Whether a metric reads the samples' texts: MAUVE always, others unless told otherwise."""
    own = {"gen_ppl", "gradient_moment"} & set(names) and not args.no_retokenize
    return "mauve" in names or bool(own)


def _check_mauve(args: argparse.Namespace) -> None:
    from idlm.metrics.mauve import MIN_SAMPLES, check_sizes, require_package

    needed = args.mauve_min_samples or MIN_SAMPLES
    if args.checkpoint:
        # the reference is cut to as many rows, and its own number is known later
        check_sizes(args.num_samples, args.num_samples, needed)
    require_package()


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


@dataclass
class Judges:
    """What measures a sample set with an evaluator; None for what is not asked for."""

    names: tuple[str, ...]
    evaluator: Evaluator | None = None
    perplexity: GenerativePerplexity | None = None
    mauve: Mauve | None = None
    moment: GradientMoment | None = None
    half_batch: int = HALF_BATCH
    retokenize: bool = True

    def passes(self) -> int:
        """How often a sample is looked at by the evaluator, for a progress bar."""
        return sum(metric is not None for metric in (self.perplexity, self.moment))

    def check_reference(self, sets: Sequence[SampleSet], reference: SampleSet) -> None:
        """Refuse before the work what a comparison would refuse after it.

        Raises:
            UserError: if a side has too few texts for MAUVE.
        """
        from idlm.metrics.mauve import check_sizes

        if self.mauve is None:
            return
        for samples in sets:
            check_sizes(len(samples.texts), len(reference.texts), self.mauve.min_samples)

    def measure(
        self,
        samples: SampleSet,
        data: SampleSet | None,
        *,
        advance: Callable[[int], None],
        processes: Processes,
    ) -> dict[str, Any]:
        """Every number of one set, which ``processes`` share; those against ``data`` may be None.

        They are without it.
        """
        from idlm.evaluation.against import mauve_numbers, moment_numbers
        from idlm.metrics.report import measure

        found = measure(
            samples, self.perplexity, metrics=self.names, advance=advance, processes=processes
        )
        if self.mauve is not None:
            found |= (
                {"mauve": None}
                if data is None
                else mauve_numbers(samples, data, self.mauve, processes=processes)
            )
        if self.moment is not None:
            found |= (
                {"gradient_moment": None}
                if data is None
                else moment_numbers(
                    samples,
                    data,
                    self.moment,
                    half_batch=self.half_batch,
                    retokenize=self.retokenize,
                    advance=advance,
                    processes=processes,
                )
            )
        return found

    def control(self, others: SampleSet | None) -> SampleSet | None:
        """The other rows if they are enough to hold the reference against them, else None."""
        rows = 0 if others is None else len(others.texts)
        needed = [
            self.mauve.min_samples if self.mauve is not None else 0,
            2 * self.half_batch if self.moment is not None else 0,
        ]
        return others if 0 < max(needed) <= rows else None


def open_judges(args: argparse.Namespace, names: tuple[str, ...]) -> Judges:
    """Load the evaluator, once, where a metric needs one.

    Raises:
        UserError: if it cannot be loaded.
    """
    from idlm.metrics.registry import EVALUATOR_METRICS

    judges = Judges(names, retokenize=not args.no_retokenize)
    if not set(names) & set(EVALUATOR_METRICS):
        return judges
    from idlm.metrics import GenerativePerplexity, GradientMoment, Mauve, load_evaluator

    judges.evaluator = load_evaluator(
        args.evaluator,
        revision=args.evaluator_revision,
        device=args.device,
        device_map=args.device_map,
        dtype=args.evaluator_dtype,
    )
    shared: dict[str, Any] = {"max_length": args.max_length, "batch_size": args.batch_size}
    eos = "published" if args.eos == "both" else args.eos
    if "gen_ppl" in names:
        judges.perplexity = GenerativePerplexity(
            judges.evaluator, retokenize=judges.retokenize, eos=eos, **shared
        )
    if "gradient_moment" in names:
        judges.half_batch = args.half_batch or HALF_BATCH
        judges.moment = GradientMoment(judges.evaluator, eos=eos, **shared)
    if "mauve" in names:
        given = {
            "seeds": args.mauve_seeds,
            "clusters": args.mauve_clusters,
            "scaling": args.mauve_scaling,
            "min_samples": args.mauve_min_samples,
        }
        own = {name: value for name, value in given.items() if value is not None}
        judges.mauve = Mauve(judges.evaluator, **own, **shared)
    return judges
