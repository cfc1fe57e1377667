/** Words: the steps as text, as formulas, and in numbers. */

import { extent, kindsOfMoments, LAYERS, softmax, usesRunning } from "./compute.mjs";
import { indexOf } from "./state.mjs";

const MINUS = "−",
  TIMES = "·",
  ABOUT = "≈";

/** Number as text, with up to four decimals and no trailing zeros. */
export function short(value) {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : MINUS + "∞";
  const size = Math.abs(value);
  let text = String(Number(size.toFixed(4)));
  if (size !== 0 && (size < 0.001 || size >= 1e7)) {
    const [digits, power] = size.toExponential(3).split("e");
    text = `${Number(digits)}e${power.replace("+", "").replace("-", MINUS)}`;
  }
  return value < 0 && Number(text.replace(MINUS, "-")) !== 0 ? MINUS + text : text;
}

/** Number of decimals that a column of numbers needs, up to four. */
export function decimals(values) {
  return Math.max(
    0,
    ...Array.from(values, (value) => (/^[^e]*\.(\d+)$/.exec(short(value))?.[1] ?? "").length),
  );
}

/** Number as text with `digits` decimals, so that a column is aligned. */
export function aligned(value, digits) {
  const text = short(value);
  if (!/^[−\d.]+$/.test(text)) return text;
  const [, places = ""] = text.split(".");
  if (digits === places.length) return text;
  return `${text}${places ? "" : "."}${"0".repeat(digits - places.length)}`;
}

/** Number as a term of a sum or a product: negative numbers are in brackets. */
function term(value) {
  return value < 0 ? `(${short(value)})` : short(value);
}

/** "= 5", or "≈ 0.3333" if digits were dropped. */
function equals(value) {
  const shown = Number(short(value).replaceAll(MINUS, "-"));
  const exact = Math.abs(shown - value) <= 1e-12 * Math.abs(value);
  return `${exact || Number.isNaN(shown) ? "=" : ABOUT} ${short(value)}`;
}

/** Sum of terms as text. Long sums show six terms and the last. */
function sum(terms) {
  const shown = terms.length <= 9 ? terms : [...terms.slice(0, 6), "…", terms[terms.length - 1]];
  return shown.join(" + ");
}

function total(values) {
  return values.reduce((a, b) => a + b, 0);
}

export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** "sample 0, channel 1, row 0, column 1". */
export function place([n, c, h, w]) {
  return `sample ${n}, channel ${c}, row ${h}, column ${w}`;
}

/** Name of a norm, with its options. */
export function title({ layer, groups, training, tracking }) {
  const words = [LAYERS[layer]];
  if (layer === "group") words.push(count(groups, "group"));
  if (usesRunning({ layer, training, tracking })) words.push("evaluation");
  return words.join(", ");
}

/** Words for the elements that the statistics of plane (n, c) come from. */
export function origin(setting, n, c) {
  const {
    layer,
    shape: [N, C, H, W],
    groups,
  } = setting;
  const size = H * W;
  const values = (planes) => `${count(planes * size, "value")} of the input`;
  if (layer === "switchable") {
    const bn = usesRunning(setting) ? "the running statistics" : `channel ${c}`;
    return `a mixture: sample ${n}’s channel ${c}, all of sample ${n}, and ${bn}`;
  }
  if (usesRunning(setting))
    return `none of these values, but the running statistics of channel ${c}`;
  if (layer === "batch") return `${values(N)}: channel ${c} of every sample`;
  if (layer === "instance") return `${values(1)}: channel ${c} of sample ${n}`;
  if (layer === "group") {
    const width = C / groups,
      first = c - (c % width);
    const last = first + width - 1;
    const which =
      width === 1 ? `channel ${first}` : `channels ${first} ${width === 2 ? "and" : "to"} ${last}`;
    return `${values(width)}: ${which} of sample ${n}`;
  }
  return `${values(C)}: every channel of sample ${n}`;
}

/** Values in the pool of plane (n, c), and flat indices of the planes of the pool. */
function membersOf(setting, x, n, c) {
  const { shape } = setting;
  const [N, C, H, W] = shape;
  const [samples, channels] = extent(setting);
  const firstN = n - (n % samples),
    firstC = c - (c % channels);
  const values = [],
    planes = [];
  for (let i = firstN; i < firstN + samples; i++)
    for (let j = firstC; j < firstC + channels; j++) {
      planes.push(i * C + j);
      const start = (i * C + j) * H * W;
      values.push(...x.slice(start, start + H * W));
    }
  return { values, planes };
}

/** Mixture of three moments in SwitchableNorm: "0.33 · 5 + 0.33 · 9.25 + 0.33 · 5 = 6.4167". */
function mixture(setting, found, plane, name) {
  const kinds = kindsOfMoments(setting, found.planes);
  const weights = softmax(name === "mean" ? setting.meanWeight : setting.varWeight);
  const parts = ["in", "ln", "bn"].map(
    (kind, i) => `${short(weights[i])} ${TIMES} ${term(kinds[kind][name][plane])}`,
  );
  return `${parts.join(" + ")} ${equals(found[name][plane])}`;
}

function meanStep(setting, x, found, n, c, plane) {
  const { layer } = setting;
  const mean = found.mean[plane];
  if (layer === "rms") return { formula: "mean = 0", lines: ["RMS Norm subtracts no mean."] };
  if (layer === "switchable")
    return {
      formula: "mean = w₁ mean(in) + w₂ mean(ln) + w₃ mean(bn)",
      lines: [
        mixture(setting, found, plane, "mean"),
        "The weights are the softmax of mean_weight.",
      ],
    };
  if (usesRunning(setting))
    return { formula: "mean = running_mean", lines: [`running_mean[${c}] = ${short(mean)}`] };
  const { values, planes } = membersOf(setting, x, n, c);
  const lines = [
    `(${sum(values.map(term))}) / ${values.length} = ${short(total(values))} / ${values.length} ${equals(mean)}`,
  ];
  if (planes.length > 1) {
    const means = planes.map((p) => term(found.planes.mean[p]));
    lines.push(`From the planes’ means: (${sum(means)}) / ${planes.length} ${equals(mean)}`);
  }
  return { formula: "mean = E[x]", lines };
}

function varianceStep(setting, x, found, n, c, plane) {
  const { layer } = setting;
  const mean = found.mean[plane];
  const variance = found.var[plane];
  if (layer === "switchable")
    return {
      formula: "var = w₁ var(in) + w₂ var(ln) + w₃ var(bn)",
      lines: [
        mixture(setting, found, plane, "var"),
        "The weights are the softmax of var_weight; the variance of a plane is divided by one less than its values.",
      ],
    };
  if (usesRunning(setting))
    return { formula: "var = running_var", lines: [`running_var[${c}] = ${short(variance)}`] };
  const { values, planes } = membersOf(setting, x, n, c);
  const squares = values.map((value) => (value - mean) ** 2);
  const terms =
    layer === "rms"
      ? values.map((value) => `${term(value)}²`)
      : values.map((value) => `(${short(value)}\u00a0${MINUS}\u00a0${term(mean)})²`);
  const lines = [
    `(${sum(terms)}) / ${values.length} = ${short(total(squares))} / ${values.length} ${equals(variance)}`,
  ];
  if (planes.length > 1 && layer !== "rms") {
    const within = total(planes.map((p) => found.planes.var[p])) / planes.length;
    lines.push(
      `From the planes: average of their variances + variance of their means = ` +
        `${short(within)} + ${short(Math.max(variance - within, 0))} ${equals(variance)}`,
    );
  }
  const formula = layer === "rms" ? "mean square = E[x²]" : "var = E[(x − mean)²]";
  return { formula, lines };
}

export const STEP_NAMES = ["Mean", "Variance", "Centred", "Divided", "Scaled and shifted"];

/**
 * The five steps for one element, { name, formula, lines }, with the numbers of this element.
 * `found` is the result of `normalize`.
 */
export function explain(setting, x, found, at) {
  const [n, c] = at;
  const plane = n * setting.shape[1] + c;
  const index = indexOf(setting.shape, at);
  const mean = found.mean[plane];
  const variance = found.var[plane];
  const { eps } = setting;
  const weight = setting.weight[c];
  const bias = setting.bias[c];
  const [centred, xHat, y] = [found.centred, found.xHat, found.y].map((v) => v[index]);
  const root = Math.sqrt(variance + eps);
  const rms = setting.layer === "rms";
  const steps = [
    meanStep(setting, x, found, n, c, plane),
    varianceStep(setting, x, found, n, c, plane),
    rms
      ? { formula: "x stays as it is", lines: [`x = ${short(x[index])}`] }
      : {
          formula: "x − mean",
          lines: [`${short(x[index])} ${MINUS} ${term(mean)} ${equals(centred)}`],
        },
    {
      formula: rms ? "x / √(mean square + eps)" : "(x − mean) / √(var + eps)",
      lines: [
        root === 0
          ? `√(0 + 0) = 0: instead of a division by 0, the result is 0`
          : `${short(centred)} / √(${short(variance)} + ${short(eps)}) = ${short(centred)} / ${short(root)} ${equals(xHat)}`,
      ],
    },
    {
      formula: rms
        ? "y = x / √(mean square + eps) · weight"
        : "y = (x − mean) / √(var + eps) · weight + bias",
      lines: rms
        ? [`${term(xHat)} ${TIMES} ${term(weight)} ${equals(y)}`, "RMS Norm has no bias."]
        : [`${term(xHat)} ${TIMES} ${term(weight)} + ${term(bias)} ${equals(y)}`],
    },
  ];
  return steps.map((step, i) => ({
    name: rms && i === 1 ? "Mean square" : STEP_NAMES[i],
    ...step,
  }));
}

/** Numbers of a step: one for each plane in the first two steps, then one for each element. */
export function stepValues(found, step) {
  return [found.mean, found.var, found.centred, found.xHat, found.y][step];
}
