"""What the machine lacks, said in one sentence: memory, or a place to write to."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from idlm.errors import UserError

# what to lower, in the order in which to try it
_TRAINING = (
    "lower --model.init_args.micro_batch_size, set --model.init_args.gradient_checkpointing true, "
    "lower --data.init_args.length and --data.init_args.eval_batch_size, or use "
    "--trainer.precision bf16-mixed"
)
ADVICE = {
    "fit": _TRAINING,
    "validate": "lower --data.init_args.eval_batch_size or --data.init_args.length",
    "test": "lower --data.init_args.eval_batch_size or --data.init_args.length",
    "generate": "lower --batch-size or --length, or use --dtype bfloat16",
    "evaluate": "lower --batch-size or --max-length, use --evaluator-dtype bfloat16, spread the "
    "evaluator with --device-map auto, and with --checkpoint lower --num-samples or --length",
    "bench": "use fewer --jobs or a machine with more memory",
}
_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "Cannot allocate memory")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")
# as Rust writes it
_OS_ERROR = re.compile(r"\(os error (\d{1,4})\)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def explained(command: str) -> Iterator[None]:
    """Turn a lack of memory or of disk in the block into a sentence.

    Args:
        command: name of the command that runs, which decides what there is to lower.

    Raises:
        UserError: in place of such an error; every other one passes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _about_memory(error, command) or _about_disk(error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU.

    PyTorch has a class of its own for GPUs (recognised by name: it need not be imported here), and
    for the CPU only a RuntimeError with one of several messages.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        # one of a process that loads data comes without its number
        return error.errno == errno.ENOMEM or (error.errno is None and _says_memory(error))
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and _says_memory(error)


def _says_memory(error: BaseException) -> bool:
    return any(words in str(error) for words in _MEMORY)


def _about_memory(error: Exception, command: str) -> str | None:
    if not is_out_of_memory(error):
        return None
    where = "the GPU" if re.search(r"\b(CUDA|HIP|GPU)\b", str(error)) else "this machine"
    asked = _ASKED.search(str(error))
    tried = f" ({asked[1]} more were asked for)" if asked else ""
    return f"{where} ran out of memory{tried}; {ADVICE.get(command, 'use smaller sizes')}"


def _about_disk(error: Exception) -> str | None:
    # libraries that write by themselves have only words for it
    said = _OS_ERROR.search(str(error))
    code = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    place = getattr(error, "filename", None) or "a file of this run"
    strerror = (isinstance(error, OSError) and error.strerror) or os.strerror(code or errno.ENOSPC)
    if code in _FULL or "No space left on device" in str(error):
        return (
            f"{place} cannot be written ({strerror}); free some space or choose another disk: what "
            "was complete before still is"
        )
    if code in _CLOSED:
        return (
            f"{place} cannot be opened or written ({strerror}); choose a place that you may "
            "read and write"
        )
    return None
