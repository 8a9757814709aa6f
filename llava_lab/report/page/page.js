"use strict";
const body = (place) => JSON.parse(place.textContent);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let script;
function plotly() {
  script ??= (async () => {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const element = document.createElement("script");
    element.textContent = await new Response(plain).text();
    document.head.append(element);
    return window.Plotly;
  })();
  return script;
}

// Plotly's layout in the page's own colors, which follow light, dark and print.
function themed(layout) {
  const [ink, faint, line] = ["--ink", "--faint", "--line"].map(color);
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: faint, automargin: true };
  const found = {
    font: { color: ink, family: "system-ui, sans-serif", size: 13 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    margin: { l: 55, r: 15, t: 20, b: 50 },
    hovermode: "closest",
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    ...structuredClone(layout),
  };
  found.xaxis = { ...axis, ...found.xaxis };
  found.yaxis = { ...axis, ...found.yaxis };
  for (const shape of found.shapes ?? []) shape.line = { color: faint, ...shape.line };
  return found;
}

async function draw(figure) {
  const { views, layout } = body(figure.querySelector("script"));
  const name = figure.querySelector("select")?.value ?? Object.keys(views)[0];
  const shown = (await plotly()).react(
    figure.querySelector(".drawn"), structuredClone(views[name]), themed(layout),
    { responsive: true, displaylogo: false, displayModeBar: false },
  );
  figure.classList.add("ready");
  return shown;
}

const figures = [...document.querySelectorAll("figure.plot")];
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) { seen.unobserve(target); draw(target); }
  }
}, { rootMargin: "600px" });
for (const figure of figures) {
  seen.observe(figure);
  figure.querySelector("select")?.addEventListener("change", () => draw(figure));
}
const again = () => figures.filter((each) => each.classList.contains("ready")).forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
matchMedia("print").addEventListener("change", again);
addEventListener("beforeprint", () => figures.forEach(draw));

const pair = document.querySelector(".pair");
pair?.addEventListener("change", () => {
  const [a, b] = [...pair.querySelectorAll("select")].map((each) => Number(each.value));
  const rows = Object.entries(body(document.getElementById("options")));
  const cell = (tag, text) => {
    const made = document.createElement(tag);
    made.className = "name";
    made.textContent = text;
    if (tag === "th") made.scope = "row";
    return made;
  };
  const lines = rows.filter(([, values]) => values[a] !== values[b]).map(([key, values]) => {
    const line = document.createElement("tr");
    line.append(cell("th", key), cell("td", values[a]), cell("td", values[b]));
    return line;
  });
  document.querySelector("#pair tbody").replaceChildren(...lines);
});

// Tables of some length are sorted by a click on a heading.
for (const table of document.querySelectorAll("main > section > section table")) {
  if (table.tBodies[0].rows.length < 6) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].textContent.replaceAll(",", "");
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [x, y] = [parseFloat(value(one)), parseFloat(value(other))];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || value(one).localeCompare(value(other));
        return x - y;
      });
      table.tBodies[0].append(...(up ? rows : rows.reverse()));
    });
  });
}
