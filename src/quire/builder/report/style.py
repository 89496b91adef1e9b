"""The page's style sheet: light, dark, and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1c2430; --muted: #647084; --line: #dde2ea; --accent: #2f62d9;
  --good: #1d8a4e; --good-paper: #eaf6ef; --tight: #b97a08; --bad: #c4362c; --bad-paper: #fcecea;
  --matmul: #dce7fd; --matmul-line: #4a78d8; --attention: #ece2fb; --attention-line: #8456c9;
  --norm: #dcf3e6; --norm-line: #2f9a63; --elementwise: #fdecd4; --elementwise-line: #c98a1f;
  --quantize: #fbdfe6; --quantize-line: #c94a6b; --layout: #f0f2f5; --layout-line: #a3adbb;
  --s0: #3a6fe0; --s1: #d9822b; --s2: #2f9a63; --s3: #b8479b; --s4: #7a5fd0; --s5: #1f9bb0; --s6: #c4483a; --s7: #7d8797;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12161d; --card: #1a2029; --ink: #e4e8ee; --muted: #96a1b2; --line: #2d3642; --accent: #7ea6ff;
    --good: #55c98a; --good-paper: #14291f; --tight: #e0ac4b; --bad: #ef7d73; --bad-paper: #331a19;
    --matmul: #1d2c4b; --matmul-line: #6f98ee; --attention: #2d2145; --attention-line: #a983e6;
    --norm: #17352a; --norm-line: #54bd88; --elementwise: #3a2c14; --elementwise-line: #dba548;
    --quantize: #3d1d28; --quantize-line: #e57593; --layout: #212832; --layout-line: #667385;
    --s0: #6f98ee; --s1: #e8a25a; --s2: #54bd88; --s3: #d979bf; --s4: #a18bea; --s5: #55c0d2; --s6: #e8796d; --s7: #98a3b3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1104px; margin: 0 auto; padding: 36px 32px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 52px 0 6px; padding-top: 18px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 30px 0 8px; }
p { max-width: 76ch; margin: 6px 0 14px; } p.lead, .sub { color: var(--muted); } .sub { margin: 4px 0 20px; }
code, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace; }
code { font-size: .87em; overflow-wrap: anywhere; }
nav { margin: 22px 0 0; font-size: 14px; } nav a { color: var(--accent); margin-right: 18px; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.verdict { border: 1px solid var(--line); border-left: 5px solid var(--muted); border-radius: 8px; padding: 16px 20px;
  background: var(--card); }
.verdict.good { border-left-color: var(--good); background: var(--good-paper); }
.verdict.bad { border-left-color: var(--bad); background: var(--bad-paper); }
.verdict strong { font-size: 18px; display: block; } .verdict.good strong { color: var(--good); }
.verdict.bad strong { color: var(--bad); } .verdict p { margin: 6px 0 8px; }
.verdict .used { display: flex; align-items: center; gap: 12px; font-size: 13px; color: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(176px, 1fr)); gap: 12px; margin: 18px 0 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 23px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: 13px; display: block; line-height: 1.4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 10px 0 6px; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 12.5px; border-bottom: 1px solid var(--line);
  padding: 6px 16px 6px 0; }
td { padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td p { margin: 0; max-width: none; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
.missed { color: var(--tight); } .none { color: var(--muted); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; font-size: 13px; color: var(--muted); margin: 10px 0 18px; }
.graphs { display: flex; flex-wrap: wrap; gap: 28px 40px; align-items: flex-start; justify-content: space-around; }
.graphs figure { margin: 0; max-width: 100%; } figcaption { font-weight: 600; margin-bottom: 10px; text-align: center; }
figcaption span { display: block; font-weight: 400; color: var(--muted); font-size: 13px; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; font-size: 11.5px;
  line-height: 1.5; overflow: auto; max-height: 560px; }
footer { margin-top: 56px; color: var(--muted); font-size: 13px; border-top: 1px solid var(--line); padding-top: 14px; }
svg { display: block; max-width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 12.5px; }
svg .mono { font-size: 11.2px; } svg .tick { fill: var(--muted); font-size: 11.5px; }
svg .value { font-weight: 600; font-variant-numeric: tabular-nums; } svg .note { fill: var(--muted); font-size: 11.5px; }
svg .mark { fill: var(--bad); font-size: 11.5px; font-weight: 600; }
.grid { stroke: var(--line); } .stem { stroke: var(--accent); stroke-width: 2; opacity: .45; } .dot { fill: var(--accent); }
line.mean { stroke: var(--ink); stroke-dasharray: 2 3; } line.limit { stroke: var(--bad); stroke-width: 1.5; }
svg text.mean { font-weight: 600; } svg text.limit { fill: var(--bad); font-weight: 600; }
.bar { fill: var(--accent); opacity: .75; } .bar.worst { fill: var(--bad); opacity: 1; }
.bar.plain { fill: var(--layout-line); opacity: .6; } .bar.chosen { fill: var(--good); opacity: 1; }
.track { fill: var(--line); } rect.good { fill: var(--good); } rect.tight { fill: var(--tight); } rect.bad { fill: var(--bad); }
.series path { fill: none; stroke-width: 1.8; } .series .key { stroke-width: 2.5; } .part { stroke: var(--paper); }
.box rect { stroke-width: 1.1; } .box.fused rect { stroke-width: 2.4; } .box.outside rect { stroke-dasharray: 4 3; }
.box.outside { opacity: .72; } .box text { text-anchor: middle; font-size: 10.2px; font-family: ui-monospace, "SF Mono",
  Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace; }
.box .op { font-weight: 700; font-size: 12px; font-family: inherit; } .box .spec, .box .small { fill: var(--muted); }
.box .made { font-style: italic; }
.edge { fill: none; stroke: var(--muted); stroke-width: 1.2; } .edge.written { stroke-dasharray: 4 3; }
.head { fill: var(--muted); }
@media print {
  :root { color-scheme: light; } main { max-width: none; padding: 0; } nav { display: none; } body { font-size: 12px; }
  h2 { break-after: avoid; margin-top: 28px; } figure, .card, .verdict, tr { break-inside: avoid; }
  pre { max-height: none; white-space: pre-wrap; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

KIND_CSS = "\n".join(
    f".box.{kind} rect {{ fill: var(--{kind}); stroke: var(--{kind}-line); }} "
    f".swatch.{kind} {{ background: var(--{kind}); border: 1px solid var(--{kind}-line); }}"
    for kind in ("matmul", "attention", "norm", "elementwise", "quantize", "layout")
)
SERIES_CSS = "\n".join(
    f".s{i} path, .s{i} .key {{ stroke: var(--s{i}); }} .s{i} circle, .part.s{i} {{ fill: var(--s{i}); }} "
    f".swatch.s{i} {{ background: var(--s{i}); }}"
    for i in range(8)
)
STYLE = CSS + KIND_CSS + "\n" + SERIES_CSS
