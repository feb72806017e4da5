"""Work of a bench in processes of one core each, without Lightning's remarks."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def as_done(
    run: Callable[[Task], Iterable[Result]], stages: Sequence[Sequence[Task]], jobs: int
) -> Iterator[tuple[Task, Result]]:
    """Tasks and what comes of them, as it comes, or of a task in another process when it ends.

    A task that fails ends the rest: no further one is begun, and its error is raised when those
    that were begun have ended, so that nothing that is done is lost.

    Args:
        run: does a task and gives its results one by one; picklable, if there are several jobs.
        stages: tasks; none is begun before all of the stage before are done.
        jobs: number of processes; a single one is this one.

    Raises:
        Exception: of the first task that failed.
    """
    if jobs == 1 or sum(map(len, stages)) < 2:
        one_core()  # so that the numbers are those of any number of jobs
        for stage in stages:
            for task in stage:
                for result in run(task):
                    yield task, result
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=one_core) as pool:
        try:
            for stage in stages:
                futures = {pool.submit(_attempt, run, task): task for task in stage}
                failed: BaseException | None = None
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    results = future.result() if error is None else getattr(error, "results", [])
                    for result in results:
                        yield futures[future], result
                    if error is not None and failed is None:
                        failed = error
                        for other in futures:
                            other.cancel()
                if isinstance(failed, _StoppedError):
                    raise failed.error from failed.__cause__  # the other process's traceback
                if failed is not None:
                    raise failed
        finally:
            # after an error, or where no more is asked for, the rest would be done in vain
            pool.shutdown(wait=False, cancel_futures=True)


class _StoppedError(Exception):
    """A task in another process failed; what it had done comes along."""

    def __init__(self, error: Exception, results: list[Any]) -> None:
        super().__init__(error, results)
        self.error, self.results = error, results


def _attempt(run: Callable[[Task], Iterable[Result]], task: Task) -> list[Result]:
    """All results of a task."""
    results: list[Result] = []
    try:
        for result in run(task):
            results.append(result)  # one by one: those before an error are kept
    except Exception as error:
        raise _StoppedError(error, results) from error
    return results


def one_core() -> None:
    """Networks this small are slower on several threads, and numbers depend on their count."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's remarks about devices and workers are of no use here; its errors are."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
