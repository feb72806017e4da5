"""How the page looks: both colour schemes, screens from a phone to a desk, and paper."""

from __future__ import annotations

from idlm.report.pictures import COLOURS, GRID, INK, MUTED, OTHERS, PAPER

# The same hues, light enough for a dark ground.
_DARK_SERIES = (
    *("#56b4f0", "#ff8a3d", "#2fd0a0", "#e79ac6", "#e3b341", "#8fd3ff"),
    *("#b794f6", "#d9814a", "#4fae92", "#d875b0", "#c0c04a", "#7fb2d6"),
)
_LIGHT = {
    "ink": INK,
    "muted": MUTED,
    "grid": GRID,
    "paper": PAPER,
    "others": OTHERS,
    "ground": "#f6f5f2",
    "line": "#d9d6cf",
    "accent": "#00527f",
    "head": "#efede8",
    **{f"series-{number}": colour for number, colour in enumerate(COLOURS)},
}
_DARK = {
    "ink": "#eceae6",
    "muted": "#aaa7a0",
    "grid": "#383733",
    "paper": "#1d1c1b",
    "others": "#8f8c86",
    "ground": "#141413",
    "line": "#3a3935",
    "accent": "#7cc4f2",
    "head": "#262523",
    **{f"series-{number}": colour for number, colour in enumerate(_DARK_SERIES)},
}


def _set(variables: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in variables.items())


_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:32px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .4em;overflow-wrap:anywhere}
h2{font-size:1.35rem;line-height:1.3;margin:2.4em 0 .5em;padding-top:.5em;
  border-top:1px solid var(--line);overflow-wrap:anywhere}
h3{font-size:1.02rem;line-height:1.35;margin:0 0 .5em;overflow-wrap:anywhere}
p,li{max-width:76ch;overflow-wrap:anywhere}
a{color:var(--accent)}
nav ul{list-style:none;padding:0;margin:1em 0 0;display:flex;flex-wrap:wrap;gap:.4em .6em}
nav a{display:block;padding:.3em .7em;border:1px solid var(--line);border-radius:999px;
  background:var(--paper);text-decoration:none;font-size:.9rem}
.findings{background:var(--paper);border:1px solid var(--line);border-left:4px solid var(--accent);
  border-radius:6px;padding:.8em 1.2em;margin:1.4em 0}
.findings ul{margin:0;padding-left:1.1em}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:18px;
  align-items:start;margin:0 0 18px}
figure,.table{margin:0 0 18px;background:var(--paper);border:1px solid var(--line);
  border-radius:8px;padding:16px;min-width:0}
.figures figure{margin:0;height:100%}
figure svg text{paint-order:stroke;stroke:var(--paper);stroke-width:2.5px}
figure svg{display:block;width:100%;max-width:480px;height:auto;margin:0 auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption,.note{font-size:.875rem;color:var(--muted);margin:.7em 0 0;max-width:90ch}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll:focus-visible{outline:2px solid var(--accent)}
.scroll img{display:block;width:900px;max-width:none;height:auto;background:#fff;
  border-radius:4px;margin:0 auto}
table{border-collapse:collapse;font-size:.875rem;line-height:1.4;min-width:100%;
  font-variant-numeric:tabular-nums}
th,td{padding:.35em .7em;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{background:var(--head);font-weight:600}
td{white-space:nowrap}
td.long{white-space:normal;min-width:22ch;max-width:60ch;overflow-wrap:anywhere}
th.number,td.number{text-align:right}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;z-index:1;background:var(--paper)}
.wide th:first-child{background:var(--head);z-index:2}
tbody tr:last-child td{border-bottom:0}
.tall{max-height:26rem;overflow-y:auto}
.tall thead th{position:sticky;top:0}
details{margin:.8em 0 0}
summary{cursor:pointer;color:var(--accent);font-size:.9rem;padding:.2em 0}
.copy>div{margin:.6em 0 0}
.copy h4{display:inline-block;margin:0 .8em 0 0;font-size:.875rem}
button{font:inherit;font-size:.85rem;padding:.25em .9em;border:1px solid var(--line);
  border-radius:5px;background:var(--head);color:var(--ink);cursor:pointer}
.copy pre{margin:.4em 0 0;max-height:12rem;overflow:auto;font-size:.78rem;line-height:1.4;
  background:var(--ground);border:1px solid var(--line);border-radius:5px;padding:.6em;
  user-select:all}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px;
  margin:0 0 18px}
.sample{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:14px;
  min-width:0}
.sample pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:26rem;overflow-y:auto;
  unicode-bidi:isolate;font:.86rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.sample .note{margin:0 0 .6em}
footer{padding-top:1em;padding-bottom:48px;font-size:.875rem;color:var(--muted)}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.92em}
@media (max-width:600px){
  header,main,footer{padding-left:12px;padding-right:12px}
  h1{font-size:1.5rem}
  h2{font-size:1.2rem}
  figure,.table,.sample{padding:10px}
}
@media print{
  body{background:#fff}
  nav,.copy,button{display:none}
  header,main,footer{max-width:none;padding:0}
  .figures{grid-template-columns:1fr 1fr}
  figure,.table,.sample{break-inside:avoid}
  .tall,.sample pre{max-height:none;overflow:visible}
  .scroll{overflow:visible}
  .scroll img{width:100%}
  td{white-space:normal}
  table{font-size:.68rem}
}
"""
CSS = (
    f":root{{color-scheme:light dark;{_set(_LIGHT)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_set(_DARK)}}}}}{_RULES}"
)
# The only script: a button puts the text of its block on the clipboard.
SCRIPT = """
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const block = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(block.textContent);
    } catch (error) {
      const range = document.createRange();
      range.selectNodeContents(block);
      const chosen = getSelection();
      chosen.removeAllRanges();
      chosen.addRange(range);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
"""
