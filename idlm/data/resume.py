"""What a data module must find unchanged when it continues a run."""

from __future__ import annotations

from typing import Any

from idlm.errors import UserError


def check_resumed(
    saved: dict[str, Any],
    *,
    seed: int,
    streaming: bool,
    global_batch_size: int,
    shuffle_window: int,
    rows_key: str,
    corpus: str,
) -> None:
    """Refuse to continue a run whose next batch would not be the one it was to see.

    Args:
        saved: the state of the data module in the checkpoint; empty for a new run.
        seed: the order's seed now.
        streaming: whether rows are packed on the fly now.
        global_batch_size: samples in a batch now; it may change where the position allows it.
        shuffle_window: documents of a stream shuffled at a time now.
        rows_key: what names the training rows, or the settings of the stream, now.
        corpus: what the user calls the corpus.

    Raises:
        UserError: naming what differs and how to go on.
    """
    if not saved:
        return
    if saved["seed"] != seed:
        raise UserError(
            f"the checkpoint was trained with data seed {saved['seed']}, not {seed}; resume with "
            f"--data.init_args.seed {saved['seed']} or start a new run"
        )
    if saved["samples_taken"] % global_batch_size:
        raise UserError(
            f"the checkpoint stands at sample {saved['samples_taken']}, which is not a multiple "
            f"of global_batch_size={global_batch_size}; resume with the batch size it was trained "
            "with or start a new run"
        )
    was_streaming = "position" in saved
    if was_streaming != streaming:
        raise UserError(
            f"the checkpoint was trained with streaming={was_streaming}, not {streaming}; resume "
            "with the same or start a new run"
        )
    window = saved.get("shuffle_window", 0)  # there was none once
    if streaming and window != shuffle_window:
        raise UserError(
            f"the checkpoint was trained with shuffle_window={window}, not {shuffle_window}; "
            f"resume with --data.init_args.shuffle_window {window} or start a new run"
        )
    if saved.get("rows", rows_key) != rows_key:
        raise UserError(
            f"the training rows of {corpus!r} are not those of the checkpoint: the text, the "
            "tokenizer, length or special_ends changed; resume with the same or start a new run"
        )
