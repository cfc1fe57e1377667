/** Panel: one norm with the origin of its statistics, its numbers and its arithmetic. */

import {
  keepsRunning,
  normalize,
  ofBatch,
  Refusal,
  shareOfBatch,
  shares,
  updated,
} from "./compute.mjs";
import { drawCube } from "./cube.mjs";
import { make, makeSvg } from "./dom.mjs";
import { Grid } from "./grid.mjs";
import { explain, origin, short, stepValues, STEP_NAMES, title } from "./words.mjs";

export class Panel {
  /** Args: `slot`, "a" or "b"; `remember(setting, found)`, which makes the update of a step. */
  constructor(slot, { select, hover, remember }) {
    this.heading = make("h2", { id: `title-${slot}` });
    this.origin = make("p", { class: "origin" });
    this.cube = makeSvg("svg", { class: "cube", role: "img" });
    this.caption = make("h3", {});
    this.grid = new Grid({ label: "", select, hover });
    this.steps = make("ol", { class: "arithmetic" });
    this.refusal = make("p", { class: "refusal" });
    this.running = make("div", { class: "running" });
    this.body = make(
      "div",
      {},
      this.origin,
      this.steps,
      this.caption,
      this.grid.element,
      this.cube,
      this.running,
    );
    this.update = make(
      "button",
      { type: "button", onclick: () => remember(this.setting, this.found) },
      "Make this update",
    );
    this.element = make(
      "article",
      { class: `panel ${slot}`, "aria-labelledby": `title-${slot}` },
      this.heading,
      this.refusal,
      this.body,
    );
  }

  /** Compute and show. Returns null, or a Refusal if the library refuses the setting. */
  show(setting, x, step, at) {
    const name = title(setting);
    this.heading.textContent = name;
    this.setting = setting;
    try {
      this.found = normalize(setting, Float64Array.from(x));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.refusal.textContent = error.message;
      this.refusal.hidden = false;
      this.body.hidden = true;
      return error;
    }
    this.refusal.hidden = true;
    this.body.hidden = false;
    const [n, c] = at;
    const part = shares(setting, n, c);
    const steps = explain(setting, x, this.found, at);
    const from = origin(setting, n, c);
    this.origin.textContent = `Formed from ${from}.`;
    drawCube(
      this.cube,
      setting.shape,
      part,
      at,
      `The planes behind the statistics of ${name}: ${from}`,
    );
    this.caption.textContent =
      step < 2 ? `${steps[step].name} used by each plane` : STEP_NAMES[step];
    this.grid.table.setAttribute("aria-label", `${name}: ${this.caption.textContent}`);
    this.grid.update({
      shape: setting.shape,
      values: stepValues(this.found, step),
      whole: step < 2,
      shares: part,
      at,
    });
    this.steps.replaceChildren(
      ...steps.map(({ name, formula, lines }, i) =>
        make(
          "li",
          { hidden: i !== step, value: i + 1 },
          make(
            "p",
            { class: "formula" },
            make("span", { class: "step-name" }, `${name}: `),
            formula,
          ),
          ...lines.map((line) => make("p", { class: "numbers" }, line)),
        ),
      ),
    );
    this.showRunning(c);
    this.sentence = `${name}: ${steps[step].name}, ${steps[step].formula}. ${steps[step].lines[0]}. From ${from}.`;
    return null;
  }

  showRunning(c) {
    const { setting, found } = this;
    const offered = keepsRunning(setting) && setting.training;
    this.running.hidden = !offered;
    if (!offered) return;
    const batch = ofBatch(setting, found.planes);
    const after = updated(setting, found.planes);
    const line = (name, now, of, next) =>
      `${name}[${c}]: ${short(now)} + ${short(shareOfBatch(setting))} · (${short(of)} − ${now < 0 ? `(${short(now)})` : short(now)}) = ${short(next)}`;
    // The button element is kept, because a new one would lose the focus.
    if (!this.update.isConnected)
      this.running.replaceChildren(make("h3", {}, "Running statistics"), make("div"), this.update);
    this.running.children[1].replaceChildren(
      make("p", { class: "formula" }, "running + share of the batch · (batch − running)"),
      make(
        "p",
        { class: "numbers" },
        line("running_mean", setting.runningMean[c], batch.mean[c], after.mean[c]),
      ),
      make(
        "p",
        { class: "numbers" },
        line("running_var", setting.runningVar[c], batch.var[c], after.var[c]),
      ),
      make(
        "p",
        { class: "hint" },
        "A training step makes this update, with the unbiased variance of the batch.",
      ),
    );
  }
}
