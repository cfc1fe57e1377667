/**
 * Compute: the numbers of the page, by the steps and the names of the library.
 *
 *   mean, var = moments(x)                 per plane, (N, C)
 *   mean, var = pool(mean, var)            a policy on the (N, C) grid
 *   scale     = weight / sqrt(var + eps)   (N, C)
 *   y         = (x - mean) * scale + bias
 *
 * A feature map (N, C, H, W) is a flat array in this order. Arrays (N, C) are flat too. A setting is
 *
 *   { layer, shape: [N, C, H, W], groups, eps, weight, bias,   weight and bias of length C
 *     training, tracking,                                      tracking: keep running statistics
 *     momentum, runningMean, runningVar,                       of length C
 *     meanWeight, varWeight }                                  of length 3: in, ln, bn
 */

export const LAYERS = {
  instance: "Instance Norm",
  batch: "Batch Norm",
  layer: "Layer Norm",
  group: "Group Norm",
  switchable: "Switchable Norm",
  rms: "RMS Norm",
};

/** Error for a setting that is not possible: the field at fault, and a message with the fix. */
export class Refusal extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Whether the running moments are used. SwitchableNorm uses them in place of the batch's. */
export function usesRunning({ layer, training, tracking }) {
  return !training && keepsRunning({ layer, tracking });
}

/** Whether the layer has running statistics at all. */
export function keepsRunning({ layer, tracking }) {
  return layer === "switchable" || ((layer === "instance" || layer === "batch") && tracking);
}

/** Throw a Refusal for the settings that the library refuses. */
export function check(setting) {
  const { layer, shape, groups, eps } = setting;
  const [N, C, H, W] = shape;
  const usesInput = !usesRunning(setting);
  if (!(eps >= 0)) throw new Refusal("eps", `eps is ${eps}: it must be 0 or more, such as 1e-5`);
  if (layer === "instance" && usesInput && H * W === 1)
    throw new Refusal(
      "shape",
      "Instance Norm needs more than 1 element a plane: one value has no " +
        "variance. Make height or width larger, or track running statistics and evaluate.",
    );
  if (layer === "batch" && usesInput && N * H * W === 1)
    throw new Refusal(
      "shape",
      "Batch Norm needs more than 1 value a channel: one value has no " +
        "variance. Use a larger batch or plane, or evaluate with running statistics.",
    );
  if (layer === "batch" && usesInput && eps === 0)
    throw new Refusal("eps", "Batch Norm needs an eps above 0 in training, such as 1e-5.");
  if (layer === "group") {
    if (!Number.isInteger(groups) || groups < 1 || C % groups) {
      const divisors = Array.from({ length: C }, (_, i) => i + 1).filter((i) => C % i === 0);
      throw new Refusal(
        "groups",
        `${groups} groups do not divide ${C} channels: choose ` +
          `${divisors.length > 1 ? "one of " : ""}${divisors.join(", ")}.`,
      );
    }
    if (N * (C / groups) * H * W === 1)
      throw new Refusal(
        "shape",
        "Group Norm needs more than 1 value: one value has no variance. " +
          "Use fewer groups, or a larger plane.",
      );
  }
  if (layer === "switchable" && H * W === 1)
    throw new Refusal(
      "shape",
      "Switchable Norm needs more than 1 element a plane: its variance " +
        "is the unbiased one, which one value does not have. Make height or width larger.",
    );
}

export function average(values) {
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}

/** Mean and biased variance of each plane. A second mean corrects the rounding of the first. */
export function moments(x, [N, C, H, W]) {
  const size = H * W;
  const mean = new Float64Array(N * C);
  const variance = new Float64Array(N * C);
  for (let plane = 0; plane < N * C; plane++) {
    const values = x.slice(plane * size, (plane + 1) * size);
    const rough = average(values);
    mean[plane] = rough + average(values.map((value) => value - rough));
    variance[plane] = average(values.map((value) => (value - mean[plane]) ** 2));
  }
  return { mean, var: variance };
}

/** Flat indices of the planes in the pool of (n, c), which spans `samples` x `channels` planes. */
function poolOf(n, c, samples, channels, C) {
  const planes = [];
  const firstN = n - (n % samples),
    firstC = c - (c % channels);
  for (let i = firstN; i < firstN + samples; i++)
    for (let j = firstC; j < firstC + channels; j++) planes.push(i * C + j);
  return planes;
}

/** Numbers of samples and channels that share statistics. For SwitchableNorm, those of "in". */
export function extent({ layer, shape: [N, C], groups }) {
  if (layer === "batch") return [N, 1];
  if (layer === "group") return [1, C / groups];
  if (layer === "layer" || layer === "rms") return [1, C];
  return [1, 1];
}

/** Moments of pools of equal planes: E[mean] and E[var] + Var[mean]. */
export function pool({ mean, var: variance }, [N, C], samples, channels) {
  const pooled = { mean: new Float64Array(N * C), var: new Float64Array(N * C) };
  for (let n = 0; n < N; n++)
    for (let c = 0; c < C; c++) {
      const planes = poolOf(n, c, samples, channels, C);
      const centre = planes.length === 1 ? mean[planes[0]] : average(planes.map((p) => mean[p]));
      pooled.mean[n * C + c] = centre;
      pooled.var[n * C + c] =
        average(planes.map((p) => variance[p])) +
        average(planes.map((p) => (mean[p] - centre) ** 2));
    }
  return pooled;
}

export function softmax(weights) {
  const largest = Math.max(...weights);
  const powers = weights.map((weight) => Math.exp(weight - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** Values of channels, (C,), repeated for every plane, (N, C). */
function perPlane(values, [N, C]) {
  return Float64Array.from({ length: N * C }, (_, plane) => values[plane % C]);
}

function running({ runningMean, runningVar, shape }) {
  return { mean: perPlane(runningMean, shape), var: perPlane(runningVar, shape) };
}

/** Moments of plane, sample and batch that SwitchableNorm mixes. Its variances are unbiased. */
export function kindsOfMoments(setting, planes) {
  const { shape } = setting;
  const [N, C, H, W] = shape;
  const unbiased = { mean: planes.mean, var: planes.var.map((v) => v * ((H * W) / (H * W - 1))) };
  return {
    in: unbiased,
    ln: pool(unbiased, shape, 1, C),
    bn: usesRunning(setting) ? running(setting) : pool(unbiased, shape, N, 1),
  };
}

/** Moments that each plane is normalized with, (N, C). The mean of RMSNorm is 0. */
export function pooled(setting, planes) {
  const { layer, shape, meanWeight, varWeight } = setting;
  if (layer === "switchable") {
    const { in: plane, ln, bn } = kindsOfMoments(setting, planes);
    const mix = ([i, l, b], name) =>
      plane[name].map((value, p) => i * value + l * ln[name][p] + b * bn[name][p]);
    return { mean: mix(softmax(meanWeight), "mean"), var: mix(softmax(varWeight), "var") };
  }
  if (usesRunning(setting)) return running(setting);
  const moments = pool(planes, shape, ...extent(setting));
  if (layer !== "rms") return moments;
  const { mean, var: variance } = moments;
  return { mean: mean.map(() => 0), var: variance.map((v, p) => v + mean[p] ** 2) };
}

/** Share of every plane, (N, C), in the statistics of plane (n, c). Running statistics give 0. */
export function shares(setting, n, c) {
  const { layer, shape, meanWeight } = setting;
  const [N, C] = shape;
  const found = new Float64Array(N * C);
  const add = (share, samples, channels) => {
    const planes = poolOf(n, c, samples, channels, C);
    for (const plane of planes) found[plane] += share / planes.length;
  };
  if (layer === "switchable") {
    const [i, l, b] = softmax(meanWeight);
    add(i, 1, 1);
    add(l, 1, C);
    if (!usesRunning(setting)) add(b, N, 1);
  } else if (!usesRunning(setting)) add(1, ...extent(setting));
  return found;
}

/** Strength of the mark of each plane. It grows with the share, and small shares stay visible. */
export function strengths(shares) {
  const strongest = Math.max(...shares);
  return Array.from(shares, (share) => (share > 0 ? 0.35 + (0.65 * share) / strongest : 0));
}

/** weight / sqrt(var + eps), (N, C), and 0 rather than infinity where var + eps is 0. */
export function scale({ weight, eps, shape: [, C] }, variance) {
  return variance.map((v, plane) => (v + eps === 0 ? 0 : weight[plane % C] / Math.sqrt(v + eps)));
}

/** (x - mean) * scale + bias. */
export function apply({ shape: [, C, H, W], bias }, x, mean, scale) {
  const size = H * W;
  return Float64Array.from(x, (value, index) => {
    const plane = Math.floor(index / size);
    return (value - mean[plane]) * scale[plane] + bias[plane % C];
  });
}

/**
 * All steps: `planes`, the moments of the planes; `mean` and `var`, (N, C); `centred`, `xHat` and
 * `y`, (N, C, H, W). RMSNorm has no bias.
 */
export function normalize(setting, x) {
  check(setting);
  const ones = setting.weight.map(() => 1);
  const zeros = setting.bias.map(() => 0);
  const plain = { ...setting, weight: ones, bias: zeros };
  const affine = setting.layer === "rms" ? { ...setting, bias: zeros } : setting;
  const planes = moments(x, setting.shape);
  const { mean, var: variance } = pooled(setting, planes);
  const unscaled = mean.map(() => 1);
  return {
    planes,
    mean,
    var: variance,
    centred: apply(plain, x, mean, unscaled),
    xHat: apply(plain, x, mean, scale(plain, variance)),
    y: apply(affine, x, mean, scale(affine, variance)),
  };
}

/** Moments of the batch that a training step adds to the running ones, (C,). `var` is unbiased. */
export function ofBatch({ layer, shape }, planes) {
  const [N, C, H, W] = shape;
  const size = H * W;
  const first = (values) => Array.from(values.slice(0, C));
  if (layer === "instance") {
    // InstanceNorm averages the moments of the planes; it does not pool them.
    const over = (values) =>
      Array.from({ length: C }, (_, c) => average(values.filter((_, plane) => plane % C === c)));
    return { mean: over(planes.mean), var: over(planes.var).map((v) => v * (size / (size - 1))) };
  }
  if (layer === "switchable") {
    const unbiased = { mean: planes.mean, var: planes.var.map((v) => v * (size / (size - 1))) };
    const { mean, var: variance } = pool(unbiased, shape, N, 1);
    return { mean: first(mean), var: first(variance) };
  }
  const count = N * size;
  const { mean, var: variance } = pool(planes, shape, N, 1);
  return { mean: first(mean), var: first(variance).map((v) => v * (count / (count - 1))) };
}

/** Share of the batch in the new running statistics. SwitchableNorm's momentum is the other part. */
export function shareOfBatch({ layer, momentum }) {
  return layer === "switchable" ? 1 - momentum : momentum;
}

/** Running statistics after one training step: running += share * (batch - running). */
export function updated(setting, planes) {
  const share = shareOfBatch(setting);
  const batch = ofBatch(setting, planes);
  const towards = (old, values) => old.map((value, c) => value + share * (values[c] - value));
  return {
    mean: towards(setting.runningMean, batch.mean),
    var: towards(setting.runningVar, batch.var),
  };
}
