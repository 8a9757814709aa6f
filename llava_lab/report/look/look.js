"use strict";
const filter = document.querySelector("#filter");
filter?.addEventListener("change", () => {
  for (const each of document.querySelectorAll("article")) {
    each.hidden = filter.value !== "" && each.dataset.flip !== filter.value;
  }
});
for (const looked of document.querySelectorAll(".looked")) {
  const data = JSON.parse(looked.querySelector("script").textContent);
  const codes = Uint8Array.from(atob(data.codes), (c) => c.charCodeAt(0));
  const kind = looked.querySelector(".kind"), which = looked.querySelector(".which");
  const percent = (share) => `${(100 * share).toPrecision(2)} %`;
  const draw = () => {
    const k = Number(kind.value), t = Number(which.value);
    const start = (k * data.tokens.length + t) * data.visual;
    looked.querySelectorAll("canvas").forEach((canvas, number) => {
      const map = data.maps[number], context = canvas.getContext("2d");
      if (!map.drawn) return;
      const image = context.createImageData(map.columns, map.rows);
      for (let row = 0; row < map.rows; row++) {
        for (let column = 0; column < map.columns; column++) {
          const at = 4 * (row * map.columns + column);
          const code = codes[start + map.first + row * map.step + column];
          image.data.set([230, 0, 122, code * 0.85], at);
        }
      }
      context.putImageData(image, 0, 0);
    });
    looked.querySelector("output").textContent =
      `${percent(data.sums[k][t])} of its attention is on visual tokens, at most ${percent(data.most[k][t])} on one`;
  };
  kind.addEventListener("change", draw);
  which.addEventListener("change", draw);
  draw();
}
