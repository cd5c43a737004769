"""How a page looks, and the scripts that it can do without: constants, no file has a word in them.

Contrast of texts is at least 4.5 to 1 in light and dark. Figures keep a white ground, since their
colours are chosen for it.
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#4a525c;--ground:#fff;--card:#f5f7f9;
--line:#c9d0d8;--link:#0b5394;--warn:#7a3300;--warnground:#fff4e8;--warnline:#d55e00}
@media (prefers-color-scheme:dark){:root{--ink:#e8ebef;--soft:#b4bcc6;--ground:#14171b;
--card:#1e2329;--line:#3d4650;--link:#8ec5ff;--warn:#ffcf9e;--warnground:#33210f;
--warnline:#ff9d4d}}
*{box-sizing:border-box}
body{margin:0;font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
background:var(--ground);overflow-wrap:anywhere}
header,main,footer,nav{max-width:62rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.7rem;line-height:1.2;margin:1.5rem 0 .3rem}
h2{font-size:1.35rem;margin:2.2rem 0 .5rem;border-bottom:1px solid var(--line)}
h3{font-size:1.12rem;margin:1.6rem 0 .4rem}
h4{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0}
a{color:var(--link)}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:var(--ground);padding:.4rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0;margin:.6rem 0}
.soft,figcaption,caption{color:var(--soft)}
.beware{background:var(--warnground);border-left:4px solid var(--warnline);padding:.5rem 1rem;
color:var(--warn)}
.beware h2,.beware h3,.beware h4{margin:.2rem 0;border:0}
ul.said{margin:.3rem 0;padding-left:1.2rem}
figure{margin:1rem 0}
.paper{background:#fff;border:1px solid var(--line);border-radius:.3rem;padding:.3rem;
overflow-x:auto}
.paper svg{display:block;width:100%;min-width:34rem;max-width:50rem;height:auto;margin:0 auto}
.scroll{overflow-x:auto;margin:.5rem 0}
.scroll:focus-visible,.paper:focus-visible{outline:3px solid var(--link)}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;padding:.2rem 0}
th,td{padding:.2rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{background:var(--card);white-space:nowrap}
th.number,td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tbody th{font-weight:400}
thead button{font:inherit;font-weight:600;color:var(--link);background:none;border:0;padding:0;
cursor:pointer}
thead button:focus-visible{outline:3px solid var(--link)}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
pre{background:var(--card);border:1px solid var(--line);border-radius:.3rem;padding:.5rem .7rem;
white-space:pre-wrap;font-size:.88rem;margin:.4rem 0}
details{margin:.5rem 0}
summary{cursor:pointer;color:var(--link)}
details.run{border:1px solid var(--line);border-radius:.3rem;padding:.3rem .8rem;margin:.5rem 0}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.1rem 1rem}
dt{color:var(--soft)}dd{margin:0}
.turn{height:min(34rem,80vh);width:100%;background:#fff;border:1px solid var(--line)}
@media (max-width:34rem){dl{display:block}dd{margin:0 0 .3rem}h1{font-size:1.4rem}}
@media print{:root{--ink:#000;--soft:#333;--ground:#fff;--card:#fff;--warn:#000;--warnground:#fff;
--link:#000}nav,.skip,.turn,.turntold{display:none!important}.scroll,.paper{overflow:visible}
.paper svg{min-width:0}figure,table,tr{break-inside:avoid}h2,h3,h4{break-after:avoid}
header,main,footer{max-width:none}}
"""

# Tables are in the order of the file without it. Numbers sort by their full value, and what is
# unknown comes last both ways. Before printing all that is folded is opened.
SORT = """
"use strict";
for (const table of document.querySelectorAll("table.sorted")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const unknown = x => x === "" || Number.isNaN(x);
      const order = (x, y) => {
        const a = value(x), b = value(y);
        if (unknown(a) || unknown(b)) return unknown(a) - unknown(b);
        const found = typeof a === "number" && typeof b === "number"
          ? (a < b ? -1 : a > b ? 1 : 0)
          : String(a).localeCompare(String(b), "en", {numeric: true});
        return down ? -found : found;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
const reveal = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  for (let node = target; node; node = node.parentElement) {
    if (node.tagName === "DETAILS") node.open = true;
  }
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach(one => { one.open = true; });
});
addEventListener("afterprint", () => folded.forEach(one => { one.open = false; }));
"""

# A browser keeps some sixteen WebGL pictures: those that are in sight are there, at most eight.
TURN = """
"use strict";
const live = [];
const draw = box => {
  const held = JSON.parse(document.getElementById(box.id + "-data").textContent);
  Plotly.newPlot(box, held.data, held.layout, {responsive: true, displaylogo: false});
  live.push(box);
  if (live.length > 8) { const old = live.shift(); Plotly.purge(old); seen.observe(old); }
};
const seen = new IntersectionObserver(entries => entries.forEach(entry => {
  if (!entry.isIntersecting) return;
  seen.unobserve(entry.target);
  draw(entry.target);
}));
for (const box of document.querySelectorAll(".turn")) { box.hidden = false; seen.observe(box); }
for (const told of document.querySelectorAll(".turntold")) told.hidden = false;
"""
