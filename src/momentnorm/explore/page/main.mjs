/** Main: the state of the page, which is shown again after each change. */

import { shares, updated } from "./compute.mjs";
import { Controls } from "./controls.mjs";
import { byId, make, say } from "./dom.mjs";
import { Grid } from "./grid.mjs";
import { Panel } from "./panel.mjs";
import { Photo } from "./photo.mjs";
import {
  EXAMPLE,
  fromHash,
  indexOf,
  readNumber,
  resized,
  settingOf,
  STEPS,
  toHash,
} from "./state.mjs";
import { place, short, STEP_NAMES } from "./words.mjs";

let state;
let hovered = null;
const wrong = new Map(); // { at, text, message } of cells without a number, by flat index
let ownHash = "";
let settling;

const input = new Grid({
  label: "Input",
  editable: true,
  select,
  hover,
  edit(at, text) {
    const index = indexOf(state.shape, at);
    try {
      const value = readNumber(text);
      wrong.delete(index);
      change((old) => ({ ...old, x: old.x.with(index, value) }));
    } catch (error) {
      wrong.set(index, { at, text, message: error.message });
      render();
    }
  },
});

const panels = {
  a: new Panel("a", { select, hover, remember }),
  b: new Panel("b", { select, hover, remember }),
};
const controls = new Controls(change);
const photo = new Photo();

/** Replace the state by `alter(state)`. With `force`, the field with the focus changes too. */
function change(alter, { force = false } = {}) {
  const next = alter(state);
  if (String(next.shape) !== String(state.shape) || force) wrong.clear();
  state = next;
  render(force);
  clearTimeout(settling);
  settling = setTimeout(settle, 250);
}

function select(at) {
  hovered = null;
  if (String(at) === String(state.at)) return render();
  change((old) => ({ ...old, at }));
}

function hover(at) {
  if (String(at) === String(hovered)) return;
  hovered = at;
  render();
}

/** Make a training step: move the running statistics of this norm. */
function remember(setting, found) {
  const { mean, var: variance } = updated(setting, found.planes);
  change((old) => ({ ...old, runningMean: mean, runningVar: variance }), { force: true });
}

function render(force = false) {
  const norms = ["a", "b"].filter((slot) => state[slot]);
  const at = hovered ?? state.at;
  const refusals = {};
  for (const slot of ["a", "b"]) {
    panels[slot].element.hidden = !state[slot];
    if (state[slot])
      refusals[slot] = panels[slot].show(settingOf(state, state[slot]), state.x, state.step, at);
  }
  const parts = norms.map((slot) =>
    refusals[slot] ? [] : shares(settingOf(state, state[slot]), at[0], at[1]),
  );
  input.update({
    shape: state.shape,
    values: state.x,
    shares: parts[0],
    others: parts[1],
    at,
    wrong,
  });
  const mistakes = [...wrong.values()].map(
    ({ at, message }) => `${place(at)}: ${message}. The last number is kept.`,
  );
  say(byId("input-error"), mistakes.join(" "));
  controls.set(state, refusals, force);
  photo.show(
    norms.map((slot) => ({
      ...state[slot],
      meanWeight: state.meanWeight,
      varWeight: state.varWeight,
    })),
    state.eps,
  );
  for (const radio of document.getElementsByName("step"))
    radio.checked = Number(radio.value) === state.step;
  byId("previous").disabled = state.step === 0;
  byId("next").disabled = state.step === STEPS - 1;
  byId("panels").classList.toggle("two", norms.length === 2);
  if (state.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  byId("theme").textContent = isDark() ? "Light theme" : "Dark theme";
}

function isDark() {
  return state.theme === "auto"
    ? matchMedia("(prefers-color-scheme: dark)").matches
    : state.theme === "dark";
}

/** Update the address and the announcement, some time after the last change. */
function settle() {
  writeAddress();
  const at = hovered ?? state.at;
  const told = ["a", "b"].filter((slot) => state[slot] && !panels[slot].body.hidden);
  byId("announcement").textContent =
    `Step ${state.step + 1} of ${STEPS}. ${short(state.x[indexOf(state.shape, at)])} at ${place(at)}. ` +
    told.map((slot) => panels[slot].sentence).join(" ");
}

function writeAddress() {
  ownHash = toHash(state);
  if (location.hash.slice(1) === ownHash) return;
  history.replaceState(null, "", ownHash ? `#${ownHash}` : location.pathname + location.search);
}

function start() {
  const found = fromHash(location.hash);
  state = found.state;
  ownHash = location.hash.slice(1);
  wrong.clear();
  byId("link-problems").textContent = found.problems.join(" ");
  render(true);
}

byId("input").append(input.element);
byId("norms").append(controls.norms);
byId("more").append(controls.more);
byId("more").open = matchMedia("(min-width: 1000px)").matches;
byId("panels").append(panels.a.element, panels.b.element);
byId("steps").append(
  ...STEP_NAMES.map((name, i) =>
    make(
      "label",
      {},
      make("input", {
        type: "radio",
        name: "step",
        value: i,
        onchange: () => change((old) => ({ ...old, step: i })),
      }),
      make("span", {}, `${i + 1} ${name}`),
    ),
  ),
);
byId("previous").addEventListener("click", () =>
  change((old) => ({ ...old, step: Math.max(0, old.step - 1) })),
);
byId("next").addEventListener("click", () =>
  change((old) => ({ ...old, step: Math.min(STEPS - 1, old.step + 1) })),
);
byId("example").addEventListener("click", () =>
  change((old) => ({ ...resized(old, EXAMPLE.shape), x: [...EXAMPLE.x] }), { force: true }),
);
byId("random").addEventListener("click", () =>
  change((old) => ({ ...old, x: old.x.map(() => Math.round(Math.random() * 200 - 50) / 10) }), {
    force: true,
  }),
);
byId("theme").addEventListener("click", () =>
  change((old) => ({ ...old, theme: isDark() ? "light" : "dark" })),
);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => render());
byId("link").addEventListener("click", async () => {
  writeAddress();
  try {
    await navigator.clipboard.writeText(location.href);
    byId("link-status").textContent = "Copied: the link carries these settings and numbers.";
  } catch {
    byId("link-status").textContent =
      "Copy the address of this page: it carries these settings and numbers.";
  }
});
addEventListener("hashchange", () => {
  if (location.hash.slice(1) !== ownHash) start();
});
start();
