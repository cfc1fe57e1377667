/** Photo: the norms on photographs, with every channel before and after and its histogram. */

import { average, normalize, Refusal } from "./compute.mjs";
import { byId, make, makeSvg } from "./dom.mjs";
import { short, title } from "./words.mjs";

const LONGEST = 256; // pixels of the longer side
const MOST_PHOTOS = 4;
const BINS = 64;
const COLOURS = ["red", "green", "blue"];
/** Values that are shown black and white. */
const RANGES = { before: [0, 255], after: [-3, 3] };

/** Decode pictures at one size, cut to the shape of the first: { planes, height, width, note }. */
async function decode(files) {
  const bitmaps = await Promise.all(
    files.slice(0, MOST_PHOTOS).map((file) => createImageBitmap(file)),
  );
  const [first] = bitmaps;
  const factor = Math.min(1, LONGEST / Math.max(first.width, first.height));
  const width = Math.max(1, Math.round(first.width * factor));
  const height = Math.max(1, Math.round(first.height * factor));
  const pixels = bitmaps.map((bitmap) => {
    const cover = Math.max(width / bitmap.width, height / bitmap.height);
    const [w, h] = [bitmap.width * cover, bitmap.height * cover];
    const context = new OffscreenCanvas(width, height).getContext("2d", {
      willReadFrequently: true,
    });
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h);
    return context.getImageData(0, 0, width, height).data;
  });
  const notes = [];
  if (factor < 1)
    notes.push(`Downscaled from ${first.width} × ${first.height} to ${width} × ${height} pixels.`);
  else notes.push(`${width} × ${height} pixels.`);
  if (bitmaps.length > 1) notes.push("All are scaled and cut to the first one’s size.");
  if (files.length > MOST_PHOTOS) notes.push(`Only the first ${MOST_PHOTOS} are taken.`);
  return { planes: pixels.flatMap(toPlanes), height, width, note: notes.join(" ") };
}

/** Three planes with values from 0 to 255. */
function toPlanes(pixels) {
  return COLOURS.map((_, channel) =>
    Float64Array.from({ length: pixels.length / 4 }, (_, i) => pixels[4 * i + channel]),
  );
}

/** Draw a picture of hills, a sun and the sky, for readers without a photograph. */
function drawn() {
  const canvas = new OffscreenCanvas(192, 128);
  const context = canvas.getContext("2d");
  const sky = context.createLinearGradient(0, 0, 0, 128);
  sky.addColorStop(0, "#3b6ea8");
  sky.addColorStop(1, "#f6d7a7");
  context.fillStyle = sky;
  context.fillRect(0, 0, 192, 128);
  context.fillStyle = "#fff3c4";
  context.beginPath();
  context.arc(138, 46, 17, 0, 7);
  context.fill();
  for (const [colour, height, waves, phase] of [
    ["#7d8f69", 34, 70, 0],
    ["#3f5d45", 20, 45, 2],
    ["#22372c", 10, 30, 4],
  ]) {
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(0, 128);
    for (let x = 0; x <= 192; x++)
      context.lineTo(x, 118 - height - 9 * Math.sin((x / waves) * 3 + phase) + height / 3);
    context.lineTo(192, 128);
    context.fill();
  }
  return canvas.convertToBlob();
}

function histogram(values, [low, high]) {
  const bins = Array(BINS).fill(0);
  for (const value of values) {
    const bin = Math.floor(((value - low) / (high - low)) * BINS);
    bins[Math.max(0, Math.min(BINS - 1, bin))]++;
  }
  return bins;
}

/** One plane as a grey picture, with its histogram. */
function picture(values, height, width, range, colour, name) {
  const canvas = make("canvas", { width, height });
  const [low, high] = range;
  const image = new ImageData(width, height);
  values.forEach((value, i) => {
    const grey = ((value - low) / (high - low)) * 255; // the array clamps values out of range
    image.data.set([grey, grey, grey, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  const mean = average(values);
  const deviation = Math.sqrt(average(values.map((value) => (value - mean) ** 2)));
  const summary = `mean ${short(Number(mean.toFixed(2)))}, std ${short(Number(deviation.toFixed(2)))}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${name}, ${colour} channel: ${summary}`);
  const bins = histogram(values, range);
  const tallest = Math.max(...bins);
  const outline = bins
    .map((count, i) => `L${i} ${(24 - (24 * count) / tallest).toFixed(2)}h1`)
    .join("");
  const bars = makeSvg(
    "svg",
    {
      viewBox: `0 0 ${BINS} 24`,
      preserveAspectRatio: "none",
      class: `histogram ${colour}`,
      "aria-hidden": "true",
    },
    makeSvg("path", { d: `M0 24${outline}V24Z` }),
  );
  const ends = make(
    "span",
    { class: "ends" },
    make("span", {}, short(low)),
    make("span", {}, short(high)),
  );
  return make("figure", {}, canvas, bars, ends, make("figcaption", {}, summary));
}

export class Photo {
  constructor() {
    this.norms = [];
    this.key = "";
    this.faded = byId("photo-faded");
    byId("photo-file").addEventListener("change", (event) => this.load([...event.target.files]));
    byId("photo-drawn").addEventListener("click", async () => this.load([await drawn()]));
    this.faded.addEventListener("change", () => this.render());
  }

  async load(files) {
    if (!files.length) return;
    try {
      this.decoded = await decode(files);
      this.say(this.decoded.note);
    } catch {
      this.say(
        "This browser cannot read this file as a picture: choose a JPEG, PNG or WebP.",
        true,
      );
      return;
    }
    byId("photo-fade").hidden = false;
    this.render();
  }

  say(text, wrong = false) {
    byId("photo-status").textContent = text;
    byId("photo-status").classList.toggle("error", wrong);
  }

  /** Show the photographs by these norms, if they have changed. */
  show(norms, eps) {
    const key = JSON.stringify([norms, eps]);
    if (key === this.key) return;
    Object.assign(this, { norms, eps, key });
    if (this.decoded) this.render();
  }

  render() {
    const { height, width } = this.decoded;
    const planes = [...this.decoded.planes];
    // One more sample: a copy with half the contrast.
    if (this.faded.checked)
      planes.push(...planes.slice(0, 3).map((plane) => plane.map((v) => 64 + v / 2)));
    const samples = planes.length / 3;
    const x = new Float64Array(planes.length * height * width);
    planes.forEach((plane, i) => x.set(plane, i * height * width));
    const rows = [{ name: "Before", values: x, range: RANGES.before }];
    for (const norm of this.norms) {
      const setting = {
        ...norm,
        training: true,
        shape: [samples, 3, height, width],
        eps: this.eps,
        weight: [1, 1, 1],
        bias: [0, 0, 0],
      };
      try {
        rows.push({ name: title(setting), values: normalize(setting, x).y, range: RANGES.after });
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        rows.push({
          name: title(setting),
          refusal: `A photograph has 3 channels. ${error.message}`,
        });
      }
    }
    const sections = Array.from({ length: samples }, (_, n) => {
      const name =
        this.faded.checked && n === samples - 1 ? "Half the contrast" : `Photograph ${n + 1}`;
      const cells = rows.flatMap((row) => [
        make("h4", {}, row.name),
        ...(row.refusal
          ? [make("p", { class: "refusal" }, row.refusal)]
          : COLOURS.map((colour, c) => {
              const start = (n * 3 + c) * height * width;
              const values = row.values.subarray(start, start + height * width);
              return picture(values, height, width, row.range, colour, `${name}, ${row.name}`);
            })),
      ]);
      return make(
        "section",
        { class: "photograph", "aria-label": name },
        make("h3", {}, name),
        ...cells,
      );
    });
    byId("photo-result").replaceChildren(...sections);
  }
}
