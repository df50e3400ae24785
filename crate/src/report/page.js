"use strict";
// Tables: a click on a heading sorts by it, a second one the other way.
for (const table of document.querySelectorAll(".table table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const text = (row) => row.cells[column].textContent;
      // `−.0012 [−.0030, .0006]`, `<.001` and `49/50 p .5` are sorted by their first number.
      const value = (row) => Number.parseFloat(text(row).replace("−", "-").replace("<", ""));
      const numeric = head.classList.contains("n");
      // What has no number comes last either way.
      const compare = (a, b) => {
        if (!numeric) return (down ? -1 : 1) * text(a).localeCompare(text(b), "en", { numeric: true });
        const [x, y] = [value(a), value(b)];
        return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : (down ? y - x : x - y);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    };
    head.tabIndex = 0;
    head.classList.add("sorts");
    head.title = "Sort";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort();
      }
    });
  });
}
// Code: hidden and shown at once; what is closed is printed open.
const code = [...document.querySelectorAll("details.code")];
const hide = document.getElementById("hide-code");
if (hide) {
  hide.hidden = false;
  hide.addEventListener("click", () => {
    const open = !code.some((details) => details.open);
    code.forEach((details) => (details.open = open));
    hide.textContent = open ? "Hide code" : "Show code";
  });
}
const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open]):not(.vega-embed *)"));
  closed.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => closed.splice(0).forEach((details) => (details.open = false)));
// Figures: Vega draws beside the picture and takes its place once that has worked.
for (const data of document.querySelectorAll("script.chart")) {
  const picture = data.parentElement.querySelector(".picture");
  const chart = document.createElement("div");
  chart.className = "picture chart drawing"; // out of sight, and as wide as it will be
  picture.after(chart);
  const actions = { export: true, source: false, compiled: false, editor: false };
  vegaEmbed(chart, JSON.parse(data.textContent), { renderer: "svg", actions })
    .then(() => {
      chart.classList.remove("drawing");
      picture.remove();
    })
    .catch((error) => {
      chart.className = "note";
      chart.textContent = `A picture alone, since the chart cannot be drawn: ${error.message}`;
    });
}
