"use strict";
// Draws each chart of the page's data as an SVG: axes, curves, a legend that hides curves, values under the pointer.

const DATA = JSON.parse(document.getElementById("charts").textContent);
const MARGIN = { left: 52, right: 10, top: 10, bottom: 22 };
const HEIGHT = 210;
const settings = { log: false, smoothing: 0 };

function element(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

function label(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

// Round numbers that divide [low, high] into four to eight parts.
function ticks(low, high) {
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// The exponential moving average of a curve, corrected for its start as Adam's moments are.
function smoothed(points, weight) {
  let sum = 0;
  return points.map(([x, y], i) => {
    sum = weight * sum + (1 - weight) * y;
    return [x, sum / (1 - weight ** (i + 1))];
  });
}

function range(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (low === high) {
    const margin = Math.abs(low) * 0.05 || 1;
    return [low - margin, high + margin];
  }
  return [low, high];
}

function draw(figure, chart, hidden) {
  figure.querySelector("svg")?.remove();
  const width = Math.max(figure.clientWidth - 24, 160);
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": chart.title });
  figure.querySelector("figcaption").after(svg);
  const shown = chart.series.filter((series) => !hidden.has(series.colour));
  const points = shown.flatMap((series) => series.points);
  if (!points.length) return;
  const isLog = settings.log && chart.section !== undefined && points.every(([, y]) => y > 0);
  const height = (y) => (isLog ? Math.log10(y) : y);
  const [x0, x1] = range(points.map(([x]) => x));
  const [y0, y1] = range(points.map(([, y]) => height(y)));
  const [right, bottom] = [width - MARGIN.right, HEIGHT - MARGIN.bottom];
  const across = (x) => MARGIN.left + ((x - x0) / (x1 - x0)) * (right - MARGIN.left);
  const down = (y) => bottom - ((height(y) - y0) / (y1 - y0)) * (bottom - MARGIN.top);
  for (const tick of ticks(y0, y1)) {
    const y = bottom - ((tick - y0) / (y1 - y0)) * (bottom - MARGIN.top);
    element("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }, svg);
    const text = element("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, svg);
    text.textContent = label(isLog ? 10 ** tick : tick);
  }
  for (const tick of ticks(x0, x1)) {
    element("text", { x: across(tick), y: HEIGHT - 6, "text-anchor": "middle" }, svg).textContent = label(tick);
  }
  const weight = chart.section === undefined ? 0 : settings.smoothing;
  for (const series of shown) {
    const stroke = `stroke: var(--c${series.colour % 8})`;
    const path = (of, extra) => {
      const d = of.map(([x, y], i) => `${i ? "L" : "M"}${across(x).toFixed(1)} ${down(y).toFixed(1)}`).join("");
      const dash = series.is_dashed ? { "stroke-dasharray": "5 3" } : {};
      element("path", { class: `curve ${extra}`, d, style: stroke, ...dash }, svg);
    };
    if (weight) path(series.points, "raw");
    path(weight ? smoothed(series.points, weight) : series.points, "");
    if (series.points.length < 12 && !series.is_dashed) {
      const style = `fill: var(--c${series.colour % 8})`;
      for (const [x, y] of series.points) element("circle", { cx: across(x), cy: down(y), r: 2.4, style }, svg);
    }
  }
  const cursor = element("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" }, svg);
  const tip = figure.querySelector(".tip");
  svg.onpointerleave = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  svg.onpointermove = (event) => {
    const pointer = event.clientX - svg.getBoundingClientRect().left;
    const nearest = (of) => of.reduce((a, b) => (Math.abs(across(b[0]) - pointer) < Math.abs(across(a[0]) - pointer) ? b : a));
    const x = nearest(points)[0];
    cursor.setAttribute("x1", across(x));
    cursor.setAttribute("x2", across(x));
    cursor.setAttribute("visibility", "visible");
    const rows = shown.map((series) => {
      const [at, y] = nearest(series.points);
      return at === x ? `${series.name}: ${label(y)}` : null;
    });
    tip.innerText = [`${chart.x_name} ${x}`, ...rows.filter((row) => row !== null)].join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.min(Math.max(across(x) + 20, 8), figure.clientWidth - tip.offsetWidth - 8)}px`;
  };
}

const redraws = [];
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = DATA[figure.dataset.chart];
  chart.series.forEach((series, i) => (series.colour ??= i));
  const hidden = new Set();
  const redraw = () => figure.clientWidth && draw(figure, chart, hidden); // none while its section is folded
  const legend = figure.querySelector(".legend");
  const named = chart.series.filter((series) => !series.is_dashed); // a dashed curve goes with the solid one
  for (const series of named.length > 1 ? named : []) {
    const button = document.createElement("button");
    const swatch = document.createElement("i");
    swatch.style.borderColor = `var(--c${series.colour % 8})`;
    button.append(swatch, chart.section === undefined ? series.name.split(" ").at(-1) : series.name);
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      hidden.has(series.colour) ? hidden.delete(series.colour) : hidden.add(series.colour);
      button.setAttribute("aria-pressed", String(!hidden.has(series.colour)));
      redraw();
    };
    legend.append(button);
  }
  redraw(); // at once, so that a page that is printed or saved early has its curves
  let width = figure.clientWidth; // drawing changes a figure's height, which is no reason to draw again
  new ResizeObserver(() => {
    if (width === figure.clientWidth) return;
    width = figure.clientWidth;
    requestAnimationFrame(redraw);
  }).observe(figure);
  redraws.push(redraw);
}
document.getElementById("log")?.addEventListener("change", (event) => {
  settings.log = event.target.checked;
  redraws.forEach((redraw) => redraw());
});
document.getElementById("smoothing")?.addEventListener("input", (event) => {
  settings.smoothing = Number(event.target.value);
  redraws.forEach((redraw) => redraw());
});
