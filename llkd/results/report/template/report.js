"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll("[data-figure]")];
const settings = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

function draw(box, figure) {
  const layout = structuredClone(figure.layout);
  if (box.clientWidth < 480) {
    layout.font.size = 11;
    // Many names do not fit below the plot; the same ones stand at its side.
    if (layout.xaxis.tickvals?.length > 12) layout.xaxis.showticklabels = false;
  }
  return Plotly.react(box, figure.data, layout, settings);
}

function choice(box, variants) {
  const select = document.createElement("select");
  select.className = "choice";
  select.setAttribute("aria-label", "What to show");
  variants.forEach((variant, i) => select.add(new Option(variant.name, i)));
  select.addEventListener("change", () => draw(box, variants[select.value]));
  box.parentElement.parentElement.insertBefore(select, box.parentElement);
}

Promise.all(
  plots.map((box) => {
    const variants = figures[box.dataset.figure];
    if (variants.length > 1) choice(box, variants);
    return draw(box, variants[0]);
  }),
).then(() => (document.body.dataset.drawn = "all"));

// A click on a column head sorts the table by it.
for (const head of document.querySelectorAll(".sortable th")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].textContent;
    const number = (text) => parseFloat(text.replace(/,/g, ""));
    const numeric = head.classList.contains("number");
    const compare = (a, b) =>
      numeric ? (number(value(a)) || 0) - (number(value(b)) || 0) : value(b).localeCompare(value(a));
    body.append(...[...body.rows].sort((a, b) => (down ? compare(b, a) : compare(a, b))));
  });
}

// In print, all details are open and plots are as wide as the page.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const box of plots) Plotly.relayout(box, { width: 640, autosize: false });
});
addEventListener("afterprint", () => {
  for (const box of plots) Plotly.relayout(box, { width: null, autosize: true });
});
