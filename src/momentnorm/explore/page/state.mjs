/** State: everything that the page shows, as one value, and its form in a link. */

import { LAYERS, keepsRunning } from "./compute.mjs";

/** Published worked example: means 5.0 13.5 / 5.0 15.5, variances 8.5 7.25 / 6.5 8.75. */
export const EXAMPLE = {
  shape: [2, 2, 2, 2],
  x: [1, 6, 9, 4, 12, 18, 13, 11, 2, 7, 3, 8, 19, 17, 15, 11],
};

export const DIMENSIONS = ["batch", "channels", "height", "width"];
/** Largest size of each dimension that a reader can still follow. */
export const MOST = [6, 8, 6, 6];
export const MOST_VALUES = 288;

/** Lists with a number for each channel, and the first value of a new channel. */
export const PER_CHANNEL = { weight: 1, bias: 0, runningMean: 0, runningVar: 1 };
/** Lists with a number for each kind of statistics of SwitchableNorm, and their first value. */
export const PER_KIND = { meanWeight: 1, varWeight: 1 };

export const STEPS = 5;

export function norm(layer, changes = {}) {
  return { layer, groups: 2, training: true, tracking: layer === "batch", ...changes };
}

export function initial() {
  const channels = EXAMPLE.shape[1];
  const lists = Object.entries(PER_CHANNEL).map(([name, v]) => [name, Array(channels).fill(v)]);
  const kinds = Object.entries(PER_KIND).map(([name, v]) => [name, Array(3).fill(v)]);
  return {
    shape: [...EXAMPLE.shape],
    x: [...EXAMPLE.x],
    eps: 1e-5,
    momentum: 0.1,
    ...Object.fromEntries([...lists, ...kinds]),
    a: norm("instance"),
    b: norm("batch"),
    step: 0,
    at: [0, 0, 0, 0],
    theme: "auto",
  };
}

/** Setting of compute.mjs for one of the two norms of a state. */
export function settingOf(state, norm) {
  return { ...state, ...norm };
}

/** Index of an element in the flat array. */
export function indexOf([, C, H, W], [n, c, h, w]) {
  return ((n * C + c) * H + h) * W + w;
}

/** Read a number. The Error for a wrong one names the fix. */
export function readNumber(text) {
  // A decimal comma is refused, because commas separate the numbers of a list.
  const plain = text.trim().replace("−", "-");
  const value = Number(plain);
  if (plain === "") throw new Error("empty: write a number, such as 1.5");
  if (Number.isNaN(value))
    throw new Error(`“${text.trim()}” is not a number: write one such as 1.5`);
  if (!Number.isFinite(value))
    throw new Error(`“${text.trim()}” is not finite: write a smaller number`);
  return value;
}

export function readWhole(text, least, most) {
  const value = readNumber(text);
  if (!Number.isInteger(value) || value < least || value > most)
    throw new Error(`${text.trim()} is not a whole number from ${least} to ${most}`);
  return value;
}

/** Read `count` numbers with commas between them. One number alone stands for all. */
export function readList(text, count) {
  const values = text.split(/[,;]/).map(readNumber);
  if (values.length === 1) return Array(count).fill(values[0]);
  if (values.length !== count)
    throw new Error(
      `${values.length} numbers for ${count}: write ${count}, with commas between, or one for all`,
    );
  return values;
}

/** Read a shape: four whole numbers, not too large for the page. */
export function readShape(texts) {
  const shape = texts.map((text, i) => {
    try {
      return readWhole(text, 1, MOST[i]);
    } catch (error) {
      throw new Error(`${DIMENSIONS[i]}: ${error.message}`);
    }
  });
  const count = shape.reduce((a, b) => a * b);
  if (shape.length !== 4) throw new Error("a shape has four sizes: batch, channels, height, width");
  if (count > MOST_VALUES)
    throw new Error(
      `${count} values are more than this page has room for, ${MOST_VALUES}: make a size smaller`,
    );
  return shape;
}

/** Check the range of a number or of a list of numbers. */
export function checkRange(name, values) {
  for (const value of [values].flat()) {
    if (name === "eps" && value < 0) throw new Error(`${value} is below 0: write such as 1e-5`);
    if (name === "momentum" && (value < 0 || value > 1))
      throw new Error(`${value} is not between 0 and 1`);
    if (name === "runningVar" && value < 0)
      throw new Error(`${value} is below 0: no variance is; write 0 or more`);
  }
  return values;
}

/** State with another shape. Values keep their place if it exists; new ones are small integers. */
export function resized(state, shape) {
  const [N, C, H, W] = shape;
  const x = [];
  for (let n = 0; n < N; n++)
    for (let c = 0; c < C; c++)
      for (let h = 0; h < H; h++)
        for (let w = 0; w < W; w++) {
          const place = [n, c, h, w];
          const kept = place.every((i, dimension) => i < state.shape[dimension]);
          x.push(kept ? state.x[indexOf(state.shape, place)] : (7 * x.length + 3) % 20);
        }
  const lists = Object.entries(PER_CHANNEL).map(([name, start]) => [
    name,
    Array.from({ length: C }, (_, c) => state[name][c] ?? start),
  ]);
  const at = state.at.map((i, dimension) => Math.min(i, shape[dimension] - 1));
  return { ...state, shape, x, at, ...Object.fromEntries(lists) };
}

/** Norm as text, such as "group-4", "batch-eval", "instance-tracked-eval". */
function writeNorm({ layer, groups, training, tracking }) {
  const words = [layer];
  if (layer === "group") words.push(groups);
  if (tracking !== norm(layer).tracking) words.push(tracking ? "tracked" : "untracked");
  if (!training) words.push("eval");
  return words.join("-");
}

function readNorm(text) {
  const [layer, ...words] = text.split("-");
  if (!(layer in LAYERS))
    throw new Error(`“${layer}” is none of ${Object.keys(LAYERS).join(", ")}`);
  const found = norm(layer);
  for (const word of words) {
    if (word === "eval") found.training = false;
    else if (word === "tracked" || word === "untracked") found.tracking = word === "tracked";
    else found.groups = readWhole(word, 1, MOST[1]);
  }
  return found;
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** Differences from the first state, as the part of a link after the #. */
export function toHash(state) {
  const start = resized(initial(), state.shape);
  const parameters = new URLSearchParams();
  const put = (name, value) => parameters.set(name, [value].flat().join(","));
  if (!same(state.a, start.a)) put("a", writeNorm(state.a));
  if (!same(state.b, start.b)) put("b", state.b ? writeNorm(state.b) : "none");
  if (!same(state.shape, EXAMPLE.shape)) put("shape", state.shape);
  for (const name of [
    "x",
    "eps",
    "momentum",
    ...Object.keys(PER_CHANNEL),
    ...Object.keys(PER_KIND),
  ])
    if (!same(state[name], start[name])) put(name, state[name]);
  if (state.step) put("step", state.step + 1);
  if (!same(state.at, start.at)) put("at", state.at);
  if (state.theme !== "auto") put("theme", state.theme);
  return parameters.toString().replaceAll("%2C", ",");
}

/** State of a link, and a sentence for each wrong part, which is left out. */
export function fromHash(hash) {
  const problems = [];
  let state = initial();
  const readers = {
    shape: (text) => (state = resized(state, readShape(text.split(",")))),
    a: (text) => (state.a = readNorm(text)),
    b: (text) => (state.b = text === "none" ? null : readNorm(text)),
    x: (text) => (state.x = readList(text, state.x.length)),
    eps: (text) => (state.eps = checkRange("eps", readNumber(text))),
    momentum: (text) => (state.momentum = checkRange("momentum", readNumber(text))),
    step: (text) => (state.step = readWhole(text, 1, STEPS) - 1),
    at: (text) =>
      (state.at = state.shape.map((size, i) => readWhole(text.split(",")[i] ?? "", 0, size - 1))),
    theme: (text) => {
      if (!["auto", "light", "dark"].includes(text)) throw new Error("it is light, dark or auto");
      state.theme = text;
    },
  };
  for (const name of Object.keys(PER_CHANNEL))
    readers[name] = (text) => (state[name] = checkRange(name, readList(text, state.shape[1])));
  for (const name of Object.keys(PER_KIND))
    readers[name] = (text) => (state[name] = readList(text, 3));
  const parameters = new URLSearchParams(hash.replace(/^#/, ""));
  for (const name of parameters.keys())
    if (!(name in readers)) problems.push(`This link's “${name}” means nothing here.`);
  for (const [name, read] of Object.entries(readers)) {
    if (!parameters.has(name)) continue;
    try {
      read(parameters.get(name));
    } catch (error) {
      problems.push(`This link's “${name}” was left out: ${error.message}.`);
    }
  }
  return { state, problems };
}

/** Groups of settings that one of these norms uses. */
export function relevant(norms) {
  return {
    running: norms.some(keepsRunning),
    kinds: norms.some(({ layer }) => layer === "switchable"),
  };
}
