"""The page's style sheet: one accent, light and dark, readable on a phone."""

STYLE = """
:root { --ink: #1d2530; --soft: #5d6876; --line: #dfe3e8; --paper: #fbfbfa;
  --card: #fff; --accent: #1f6f8b; --band: #1f6f8b26; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ed; --soft: #98a3b0; --line: #2e3742; --paper: #14181d; --card: #1b2027; --accent: #5bb8d4;
  --band: #5bb8d42e; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; }
a { color: var(--accent); }
code, pre { font: .85em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; margin: .3rem 0 1rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; color: var(--soft); }
.note, .unit { color: var(--soft); font-size: .9rem; }
.status { color: #fff; background: #6b7480; border-radius: 1rem; padding: 0 .7rem; font-size: .85rem; }
.status.running { background: #1769aa; } .status.finished { background: #2b7a4b; }
.status.failed { background: #b3362b; } .status.interrupted { background: #96630a; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.headline th { text-align: left; font-weight: 400; color: var(--soft); }
.headline th, .headline td { padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: baseline; overflow-wrap: anywhere; }
.headline .number { font-weight: 600; text-align: right; white-space: nowrap; }
.headline .group th { padding-top: .9rem; color: var(--ink); font-weight: 600; }
.rows { font-size: .85rem; }
.rows th, .rows td { padding: .15rem .8rem .15rem 0; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.scroll { overflow: auto; max-height: 26rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
  min-width: 0; }
figcaption { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.pictures, .charts {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  align-items: start; grid-auto-flow: row dense; }
.wide { grid-column: 1 / -1; }
.charts + .headline { margin-top: 1rem; }
img, video { display: block; width: 100%; height: auto; border-radius: 4px; margin-bottom: .4rem; }
svg { display: block; width: 100%; height: auto; }
svg .tick { font-size: 13px; fill: var(--soft); } svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); }
svg .raw { fill: none; stroke: var(--accent); stroke-opacity: .35; stroke-width: 1; }
svg .smooth { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .band { fill: var(--band); } svg .dot { fill: var(--accent); }
svg .hover { fill: transparent; } svg .hover:hover { fill: var(--band); }
"""
