/** Controls: the fields of the settings, with an error message below each field. */

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

/** Input with its label, a hint and an error message. `change(text)` is called while typing. */
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

  /** Show an error message, or none if it is empty. `own`: the text of this field is no value. */
  fail(message, own = true) {
    this.failed = own && message !== "";
    say(this.error, message);
    this.error.hidden = message === "";
    this.input.setAttribute("aria-invalid", message !== "");
  }

  /** Show a value, unless a reader types here, and the message of a norm that refuses it. */
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

/** Controls of one of the two norms: the layer, its groups, its mode. */
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
    this.training = toggle(`${slot}-eval`, "evaluate with running statistics", (on) => alter({ training: !on }));
    this.always = make("p", { class: "hint" }, "Training and evaluation give the same result.");
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

function group(legend, ...elements) {
  return make("fieldset", {}, make("legend", {}, legend), ...elements);
}

/** Fields of the four sizes. They share one error message, `error`. */
function shapeFields(change, error) {
  return DIMENSIONS.map((name, i) => {
    const field = new Field(`shape-${name}`, name, { type: "number", min: 1, max: MOST[i], change });
    field.error.remove();
    field.error = error;
    field.input.setAttribute("aria-describedby", error.id);
    return field;
  });
}

/** Field of a number of the state. */
function numberField(change, name, label, hint) {
  return new Field(name, label, {
    hint,
    change: (text) => {
      const value = checkRange(name, readNumber(text));
      change((state) => ({ ...state, [name]: value }));
    },
  });
}

/** Field of a list of the state, with a number for each channel or kind of statistics. */
function listField(change, name) {
  return new Field(name, LISTS[name], {
    change: (text) =>
      change((state) => {
        const count = name in PER_KIND ? 3 : state.shape[1];
        return { ...state, [name]: checkRange(name, readList(text, count)) };
      }),
  });
}

export class Controls {
  /** `change(state => state)` replaces the state. */
  constructor(change) {
    this.choices = [
      new NormControls("a", "Normalization", change),
      new NormControls("b", "Compare with", change),
    ];
    this.shapeError = make("p", { id: "shape-error", class: "error", role: "alert" });
    this.shape = shapeFields(() => this.reshape(change), this.shapeError);
    this.fields = {
      eps: numberField(change, "eps", "eps"),
      momentum: numberField(
        change,
        "momentum",
        "Momentum",
        "The share of a batch in the running statistics. In Switchable Norm, the share that they keep.",
      ),
    };
    for (const name of Object.keys({ ...PER_CHANNEL, ...PER_KIND }))
      this.fields[name] = listField(change, name);
    this.norms = make("div", {}, ...this.choices.map((choice) => choice.element));
    this.arrange();
  }

  /** Put the fields into groups. */
  arrange() {
    const elements = (...names) => names.map((name) => this.fields[name].element);
    this.running = group("Running statistics", ...elements("runningMean", "runningVar", "momentum"));
    this.kinds = group("Proportions of Switchable Norm", ...elements("meanWeight", "varWeight"));
    const sizes = make("div", { class: "sizes" }, ...this.shape.map((field) => field.element));
    const hint = "Weight and bias: a number for each channel, with commas between, or one for all.";
    this.more = make(
      "div",
      {},
      group("Shape", sizes, this.shapeError),
      group("Parameters", ...elements("eps", "weight", "bias"), make("p", { class: "hint" }, hint)),
      this.running,
      this.kinds,
    );
  }

  /** Read the four sizes and change the shape of the state. */
  reshape(change) {
    const shape = readShape(this.shape.map((field) => field.input.value));
    for (const field of this.shape) field.failed = false;
    change((state) => resized(state, shape));
  }

  /** Show the state and the refusals. With `force`, the field with the focus changes too. */
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
