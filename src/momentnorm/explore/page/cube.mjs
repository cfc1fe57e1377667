/** Cube: the feature map as a block of glass, with solid planes where the statistics come from. */

import { strengths } from "./compute.mjs";
import { makeSvg } from "./dom.mjs";

const CELL = 22; // edge of a cell along samples and channels, in pixels
const RISE = [18, 110]; // largest height of one element, and of a whole plane

/** Draw into an <svg>, with a `label` for screen readers. Channels go right, samples back. */
export function drawCube(svg, [N, C, H, W], shares, [chosenN, chosenC], label) {
  const size = H * W;
  const right = CELL * Math.cos(Math.PI / 6),
    down = CELL / 2;
  const rise = Math.min(RISE[0], RISE[1] / size);
  const point = ([n, c, s]) =>
    `${(right * (c + n)).toFixed(1)} ${(down * (c - n) - rise * s).toFixed(1)}`;
  const quad = (...corners) => `M${corners.map(point).join("L")}Z`;
  const layers = (draw) => Array.from({ length: size }, (_, s) => draw(s)).join("");
  const faces = {
    front: (n, c) =>
      layers((s) => quad([n, c, s], [n, c + 1, s], [n, c + 1, s + 1], [n, c, s + 1])),
    side: (n, c) =>
      layers((s) =>
        quad([n, c + 1, s], [n + 1, c + 1, s], [n + 1, c + 1, s + 1], [n, c + 1, s + 1]),
      ),
    top: (n, c) => quad([n, c, size], [n, c + 1, size], [n + 1, c + 1, size], [n + 1, c, size]),
  };
  const strength = strengths(shares);
  const solid = [],
    glass = { front: "", side: "", top: "" };
  // Planes are drawn from back to front.
  for (let n = N - 1; n >= 0; n--)
    for (let c = 0; c < C; c++) {
      if (shares[n * C + c] > 0) {
        const chosen = n === chosenN && c === chosenC;
        const plane = makeSvg("g", {
          class: chosen ? "solid chosen" : "solid",
          "data-plane": `${n},${c}`,
        });
        plane.style.setProperty("--strength", chosen ? 1 : strength[n * C + c]);
        for (const face of ["front", "side", "top"])
          plane.append(makeSvg("path", { class: face, d: faces[face](n, c) }));
        solid.push(plane);
        continue;
      }
      if (n === 0) glass.front += faces.front(n, c);
      if (c === C - 1) glass.side += faces.side(n, c);
      glass.top += faces.top(n, c);
    }
  const panes = Object.entries(glass).map(([face, d]) =>
    makeSvg("path", { class: `glass ${face}`, d }),
  );
  const left = -26,
    top = -down * N - rise * size - 6;
  const width = right * (C + N) - left + 30,
    height = down * C - top + 26;
  const name = (x, y, anchor, text) => makeSvg("text", { x, y, "text-anchor": anchor }, text);
  svg.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(
    ...solid,
    ...panes,
    name((right * C) / 2 - 8, (down * C) / 2 + 20, "end", "C"),
    name(right * (C + N / 2) + 8, down * (C - N / 2) + 20, "start", "N"),
    name(-8, (-rise * size) / 2 + 4, "end", "HW"),
  );
}
