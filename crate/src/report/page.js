"use strict";
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
