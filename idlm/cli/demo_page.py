"""The page of ``idlm demo``: one request, several checkpoints, their texts as they are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from idlm.cli.frames import GIVEN, MASKED, NEW, Frame, frames
from idlm.errors import UserError

if TYPE_CHECKING:
    from gradio import Blocks

    from idlm.models import DiffusionLM

# half transparent, for light and dark pages
_STYLES = {
    GIVEN: "font-style:italic;opacity:.65",
    NEW: "background:rgba(16,185,129,.45)",
    MASKED: "opacity:.35",
}
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6"
_STEPS = 16
_HOUR = 3600.0
_LARGEST_SEED = 2**31 - 1
_FONTS = ("system-ui", "sans-serif")
_INTRO = (
    "## Text in a few network calls\n"
    "Each column writes the same request with its own number of calls. Green is what a call has "
    "just written, shades are still to come. Fewer calls mean more tokens at once, which a "
    "distilled network does better than its teacher."
)


class Writer(NamedTuple):
    """A column of the page.

    Attributes:
        name: of the checkpoint.
        model: in eval mode.
        tokenizer: of the checkpoint.
    """

    name: str
    model: DiffusionLM
    tokenizer: Any


def write(
    writers: Sequence[Writer],
    prompt: str,
    length: float,
    temperature: float,
    seed: float,
    *steps: float,
) -> Generator[list[str], None, None]:
    """What the columns show, after every network call of one writer after the other.

    Args:
        writers: the columns.
        prompt: what every text begins with.
        length: tokens, prompt included; a writer of a shorter context writes as many as it can.
        temperature: of the draws.
        seed: of every column.
        steps: of each column.

    Yields:
        A line of facts and a text as HTML for each column, one after the other.

    Raises:
        UserError: for a request outside what a model can do.
    """
    shown = ["", ""] * len(writers)
    for number, (writer, wanted) in enumerate(zip(writers, steps, strict=True)):
        request = {
            "length": min(int(length), writer.model.config.model_length),
            "steps": int(wanted),
            "temperature": float(temperature),
            "seed": int(seed),
        }
        with closing(frames(writer.model, writer.tokenizer, prompt=prompt, **request)) as found:
            for frame in found:
                shown[2 * number : 2 * number + 2] = [facts(frame), markup(frame)]
                yield list(shown)


def facts(frame: Frame) -> str:
    """A line about a frame."""
    parts = [
        f"{frame.calls} network call{'s' * (frame.calls != 1)}",
        f"{frame.written / max(1, frame.calls):.0f} tokens per call",
        f"{frame.seconds:.1f} s",
    ]
    if frame.entropy is not None:
        parts.append(f"entropy {frame.entropy:.2f} nats")
    return " · ".join(parts)


def markup(frame: Frame) -> str:
    """The text of a frame as HTML, each run in the style of its kind."""
    runs = []
    for text, kind in frame.spans:
        style = _STYLES.get(kind or "")
        runs.append(f'<span style="{style}">{escape(text)}</span>' if style else escape(text))
    return f'<div style="{_TEXT}">{"".join(runs)}</div>'


def page(writers: Sequence[Writer]) -> Blocks:
    """The page, not yet served.

    Args:
        writers: its columns, one or more.
    """
    import gradio as gr

    context = max(writer.model.config.model_length for writer in writers)
    # one request is served at a time, so this is about that one; gradio's own way of cancelling an
    # event shows it as an error
    stopped = threading.Event()

    def answer(*values: Any) -> Iterator[list[str]]:
        stopped.clear()
        try:
            with closing(write(writers, *values)) as states:
                for shown in states:
                    yield shown
                    if stopped.is_set():
                        break
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="idlm", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(_INTRO)
        with gr.Row():
            prompt = gr.Textbox(label="prompt (may be empty)", scale=3)
            length = gr.Slider(1, context, context, step=1, label="length in tokens")
            temperature = gr.Slider(0.5, 1.2, 1.0, step=0.05, label="temperature")
            seed = gr.Number(0, precision=0, minimum=0, maximum=_LARGEST_SEED, label="seed")
        steps, outputs = [], []
        with gr.Row():
            for writer in writers:
                with gr.Column():
                    most = writer.model.config.model_length
                    start = min(_STEPS, most)
                    steps.append(gr.Slider(1, most, start, step=1, label=f"{writer.name}: steps"))
        with gr.Row():
            start_button = gr.Button("Write", variant="primary")
            stop_button = gr.Button("Stop")
        with gr.Row(equal_height=False):
            for writer in writers:
                with gr.Column():
                    gr.Markdown(f"**{_plain(writer.name)}**")
                    outputs += [gr.Markdown(), gr.HTML()]
        wanted = [prompt, length, temperature, seed, *steps]
        gr.on([start_button.click, prompt.submit], answer, wanted, outputs, concurrency_limit=1)
        stop_button.click(stopped.set, queue=False)
    return blocks


def _plain(name: str) -> str:
    """A name without what Markdown would take for markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|" else c for c in name)


def serve(writers: Sequence[Writer], host: str, port: int) -> None:
    """Serve the page until interrupted, to nobody outside unless ``host`` says so.

    Args:
        writers: the columns.
        host: address to listen on.
        port: alike.
    """
    import gradio as gr

    served = page(writers)
    served.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        # fonts of the reader's system: the page asks no other machine for anything
        theme=gr.themes.Default(font=_FONTS, font_mono=("monospace",)),
    )
    print(f"idlm demo: http://{host}:{port} (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(_HOUR)
    served.close(verbose=False)
