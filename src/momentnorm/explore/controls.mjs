/** The settings: fields that say in place what is wrong with them. */

import { LAYERS, keepsRunning } from "./compute.mjs";
import { make, say } from "./dom.mjs";
import {
  DIMENSIONS,
  MOST,
  PER_CHANNEL,
  PER_KIND,
  checkRange,
  norm,
  readList,
  readNumber,
  readShape,
  readWhole,
  relevant,
  resized,
} from "./state.mjs";

/** An input with its label, a hint, and room for what is wrong with it. */
class Field {
  constructor(id, label, { hint, change, ...attributes }) {
    this.input = make("input", { id, autocomplete: "off", spellcheck: "false", ...attributes });
    this.error = make("p", { id: `${id}-error`, class: "error", role: "alert" });
    const described = [`${id}-error`];
    this.element = make("div", { class: "field" }, make("label", { for: id }, label), this.input);
    if (hint) {
      this.element.append(make("p", { id: `${id}-hint`, class: "hint" }, hint));
      described.push(`${id}-hint`);
    }
    this.element.append(this.error);
    this.input.setAttribute("aria-describedby", described.join(" "));
    this.fail("");
    this.input.addEventListener("input", () => {
      try {
        this.failed = false;
        change(this.input.value);
      } catch (error) {
        this.fail(error.message);
      }
    });
  }

  /** Show what is wrong; an empty message is that nothing is. `own`: what is typed is no value. */
  fail(message, own = true) {
    this.failed = own && message !== "";
    say(this.error, message);
    this.error.hidden = message === "";
    this.input.setAttribute("aria-invalid", message !== "");
  }

  /** The value of the state, unless somebody is typing here, and why a norm refuses it. */
  set(value, force, refusal = "") {
    if (force) this.failed = false;
    if (this.failed) return;
    if (force || document.activeElement !== this.input) this.input.value = value;
    this.fail(refusal, false);
  }
}

function choice(id, label, options, change) {
  const select = make(
    "select",
    { id, onchange: () => change(select.value) },
    ...Object.entries(options).map(([value, text]) => make("option", { value }, text)),
  );
  return {
    select,
    element: make("div", { class: "field" }, make("label", { for: id }, label), select),
  };
}

function toggle(id, label, change) {
  const input = make("input", { id, type: "checkbox", onchange: () => change(input.checked) });
  return {
    input,
    element: make("div", { class: "toggle" }, input, make("label", { for: id }, label)),
  };
}

/** One of the two norms: the layer, its groups, its mode. */
class NormControls {
  constructor(slot, label, change) {
    const options = slot === "a" ? LAYERS : { none: "nothing", ...LAYERS };
    const alter = (changes) =>
      change((state) => ({ ...state, [slot]: { ...state[slot], ...changes } }));
    this.slot = slot;
    this.layer = choice(`${slot}-layer`, label, options, (layer) =>
      change((state) => ({
        ...state,
        [slot]:
          layer === "none" ? null : norm(layer, state[slot] ? { groups: state[slot].groups } : {}),
      })),
    );
    this.groups = new Field(`${slot}-groups`, "Groups", {
      type: "number",
      min: 1,
      max: MOST[1],
      change: (text) => alter({ groups: readWhole(text, 1, MOST[1]) }),
    });
    this.tracking = toggle(`${slot}-tracking`, "keep running statistics", (tracking) =>
      alter({ tracking, training: true }),
    );
    this.training = toggle(`${slot}-eval`, "evaluate with them", (on) => alter({ training: !on }));
    this.always = make("p", { class: "hint" }, "The same in training and in evaluation.");
    this.element = make(
      "div",
      { class: "norm" },
      this.layer.element,
      this.groups.element,
      this.always,
      this.tracking.element,
      this.training.element,
    );
  }

  set(state, force, refusal) {
    const chosen = state[this.slot];
    this.layer.select.value = chosen ? chosen.layer : "none";
    this.groups.element.hidden = chosen?.layer !== "group";
    const refused = refusal?.field === "groups" ? refusal.message : "";
    this.groups.set(chosen?.groups ?? 2, force, refused);
    this.tracking.element.hidden = !["instance", "batch"].includes(chosen?.layer);
    this.tracking.input.checked = Boolean(chosen?.tracking);
    this.training.element.hidden = !chosen || !keepsRunning(chosen);
    this.training.input.checked = Boolean(chosen && !chosen.training);
    this.always.hidden = !chosen || ["instance", "batch", "switchable"].includes(chosen.layer);
  }
}

const LISTS = {
  weight: "Weight",
  bias: "Bias",
  runningMean: "Running mean",
  runningVar: "Running variance",
  meanWeight: "Weights of the means (in, ln, bn)",
  varWeight: "Weights of the variances (in, ln, bn)",
};

export class Controls {
  /** `change(state => state)` replaces the state. */
  constructor(change) {
    this.choices = [
      new NormControls("a", "Normalization", change),
      new NormControls("b", "Compare with", change),
    ];
    this.shape = DIMENSIONS.map(
      (name, i) =>
        new Field(`shape-${name}`, name, {
          type: "number",
          min: 1,
          max: MOST[i],
          change: () => this.reshape(change),
        }),
    );
    // The four of them have one place for what is wrong.
    this.shapeError = make("p", { id: "shape-error", class: "error", role: "alert" });
    for (const field of this.shape) {
      field.error.remove();
      field.error = this.shapeError;
      field.input.setAttribute("aria-describedby", "shape-error");
    }
    const single = (name, label, hint) =>
      new Field(name, label, {
        hint,
        change: (text) => {
          const value = checkRange(name, readNumber(text));
          change((state) => ({ ...state, [name]: value }));
        },
      });
    const list = (name) =>
      new Field(name, LISTS[name], {
        change: (text) =>
          change((state) => {
            const count = name in PER_KIND ? 3 : state.shape[1];
            return { ...state, [name]: checkRange(name, readList(text, count)) };
          }),
      });
    this.fields = {
      eps: single("eps", "eps"),
      momentum: single(
        "momentum",
        "Momentum",
        "The share of a batch in the running statistics; of Switchable Norm, the share that they keep.",
      ),
    };
    for (const name of Object.keys({ ...PER_CHANNEL, ...PER_KIND })) this.fields[name] = list(name);
    const { eps, momentum, weight, bias, runningMean, runningVar, meanWeight, varWeight } =
      this.fields;
    const group = (legend, ...fields) =>
      make(
        "fieldset",
        {},
        make("legend", {}, legend),
        ...fields.map((field) => field.element ?? field),
      );
    this.running = group("Running statistics", runningMean, runningVar, momentum);
    this.kinds = group("Proportions of Switchable Norm", meanWeight, varWeight);
    this.norms = make("div", {}, ...this.choices.map((choice) => choice.element));
    this.more = make(
      "div",
      {},
      group(
        "Shape",
        make("div", { class: "sizes" }, ...this.shape.map((field) => field.element)),
        this.shapeError,
      ),
      group(
        "Parameters",
        eps,
        weight,
        bias,
        make(
          "p",
          { class: "hint" },
          "Weight and bias: a number for each channel, with commas between, or one for all.",
        ),
      ),
      this.running,
      this.kinds,
    );
  }

  reshape(change) {
    const shape = readShape(this.shape.map((field) => field.input.value));
    for (const field of this.shape) field.failed = false;
    change((state) => resized(state, shape));
  }

  /** Show the state and what the norms refuse. `force`: also in the field that has the focus. */
  set(state, refusals, force = false) {
    const chosen = [state.a, state.b].filter(Boolean);
    const { running, kinds } = relevant(chosen);
    this.running.hidden = !running;
    this.kinds.hidden = !kinds;
    const refused = (name) =>
      Object.values(refusals).find((refusal) => refusal?.field === name)?.message;
    for (const choice of this.choices) choice.set(state, force, refusals[choice.slot]);
    if (force || !this.shape.some((field) => field.failed))
      this.shape.forEach((field, i) => field.set(state.shape[i], force, refused("shape")));
    for (const [name, field] of Object.entries(this.fields))
      field.set([state[name]].flat().join(", "), force, refused(name));
  }
}
