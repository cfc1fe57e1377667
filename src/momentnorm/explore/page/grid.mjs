/**
 * Grid: a feature map as a table, with a row of planes for each sample and a column for each
 * channel. Arrow keys move between its cells. The Tab key stops at the table once.
 */

import { strengths } from "./compute.mjs";
import { make } from "./dom.mjs";
import { indexOf } from "./state.mjs";
import { aligned, decimals, place, short } from "./words.mjs";

const MOVES = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
};

/** Element (n, c, h, w) at a row and a column of the whole table. */
function atCell([, , H, W], row, column) {
  return [Math.floor(row / H), Math.floor(column / W), row % H, column % W];
}

/** Cell that separates two planes. */
function gap() {
  return make("td", { class: "gap", role: "presentation" });
}

/**
 * Table of one feature map.
 *
 * Args: `label`, for screen readers; `editable`; and three functions: `select(at)` is called when
 * an element gets the focus, `hover(at or null)` when the pointer moves, `edit(at, text)` while a
 * number is typed.
 */
export class Grid {
  constructor({ label, editable = false, select, hover, edit }) {
    Object.assign(this, { editable, select, hover, edit });
    this.table = make("table", { role: "grid", "aria-label": label, class: "planes" });
    this.element = make("div", { class: "scroll" }, this.table);
    this.cells = new Map();
    this.layout = "";
    this.table.addEventListener("keydown", (event) => this.move(event));
    this.table.addEventListener("focusin", (event) => this.arrive(event.target));
    this.table.addEventListener("pointerover", (event) => this.hover(this.elementAt(event.target)));
    this.table.addEventListener("pointerleave", () => this.hover(null));
  }

  /**
   * Show values and marks.
   *
   * Args: `shape`; `values`, flat, of elements, or of planes if `whole`; `shares`, (N, C) flat, and
   * `others`, the shares of a second norm; `at`, the chosen element; `wrong`, a Map from flat index
   * to the { text } of a cell that holds no number.
   */
  update({ shape, values, whole = false, shares, others, at, wrong = new Map() }) {
    const layout = `${shape} ${whole}`;
    const hadFocus = this.table.contains(document.activeElement);
    if (layout !== this.layout) this.build(shape, whole);
    Object.assign(this, { layout, shape, whole, chosen: at });
    const strength = strengths(shares);
    const digits = decimals(values);
    // All fields are as wide as the longest number, up to 12 characters.
    const longest = Math.max(...Array.from(values, (value) => String(value).length));
    this.table.style.setProperty("--characters", Math.min(longest, 12));
    for (const [key, { cell, target, position }] of this.cells) {
      const [n, c] = position;
      const plane = n * shape[1] + c;
      const chosen = key === this.key(at);
      cell.classList.toggle("in", shares[plane] > 0);
      cell.classList.toggle("in-other", others !== undefined && others[plane] > 0);
      cell.classList.toggle("chosen", chosen);
      cell.style.setProperty("--strength", strength[plane]);
      target.tabIndex = chosen ? 0 : -1;
      const index = whole ? plane : indexOf(shape, position);
      this.show(target, values[index], digits, position, wrong.get(index));
    }
    if (hadFocus && !this.table.contains(document.activeElement)) this.focus(at);
  }

  /** Show the text and the label of one cell. */
  show(target, value, digits, position, wrong) {
    const where = this.whole ? `sample ${position[0]}, channel ${position[1]}` : place(position);
    if (this.editable) {
      target.setAttribute("aria-label", where);
      target.setAttribute("aria-invalid", wrong !== undefined);
      target.setAttribute("aria-describedby", wrong ? "input-error" : "input-hint");
      if (document.activeElement !== target) target.value = wrong?.text ?? String(value);
      return;
    }
    target.setAttribute("aria-label", `${short(value)}: ${where}`);
    target.firstChild.value = String(value);
    target.firstChild.textContent = aligned(value, digits);
    target.title = String(value);
  }

  key([n, c, h, w]) {
    return this.whole ? `${n},${c}` : `${n},${c},${h},${w}`;
  }

  build(shape, whole) {
    this.whole = whole;
    const [N, C, H, W] = shape;
    this.cells.clear();
    const head = make("tr", {}, make("td"));
    for (let c = 0; c < C; c++) {
      if (c > 0) head.append(gap());
      head.append(make("th", { scope: "colgroup", colspan: W }, `channel ${c}`));
    }
    const bodies = [];
    for (let n = 0; n < N; n++) {
      const body = make("tbody");
      for (let h = 0; h < H; h++) {
        const row = make("tr");
        if (h === 0)
          row.append(
            make("th", { scope: "rowgroup", rowspan: H }, make("span", {}, `sample ${n}`)),
          );
        for (let c = 0; c < C; c++) {
          if (c > 0) row.append(gap());
          if (whole && h === 0) row.append(this.cell([n, c, 0, 0], { rowspan: H, colspan: W }));
          if (!whole) for (let w = 0; w < W; w++) row.append(this.cell([n, c, h, w], {}));
        }
        body.append(row);
      }
      bodies.push(body);
    }
    this.table.replaceChildren(make("thead", {}, head), ...bodies);
    this.table.classList.toggle("whole", whole);
  }

  cell(position, spans) {
    const cell = make("td", { role: "gridcell", ...spans });
    let target = cell;
    if (this.editable) {
      target = make("input", { size: 1, autocomplete: "off", spellcheck: "false" });
      target.addEventListener("input", () => this.edit(position, target.value));
      cell.append(target);
    } else cell.append(make("data"));
    cell.dataset.at = position.join(",");
    this.cells.set(this.key(position), { cell, target, position });
    return cell;
  }

  /** Element shown by a node of the page, or null. */
  at(node) {
    const cell = node.closest("[data-at]");
    return cell && cell.dataset.at.split(",").map(Number);
  }

  /** Element of a node. A whole plane stands for its element that was chosen before. */
  elementAt(node) {
    const at = this.at(node);
    return at && this.whole ? [...at.slice(0, 2), ...this.chosen.slice(2)] : at;
  }

  focus(at) {
    this.cells.get(this.key(at)).target.focus();
  }

  arrive(node) {
    const at = this.elementAt(node);
    if (!at) return;
    if (this.editable) node.select();
    this.select(at);
  }

  move(event) {
    const { target, key, ctrlKey } = event;
    const from = this.at(target);
    if (!from || event.altKey || event.metaKey) return;
    const [N, C, H, W] = this.shape;
    const [rows, columns] = this.whole ? [H, W] : [1, 1];
    let row = from[0] * H + from[2];
    let column = from[1] * W + from[3];
    if (key in MOVES) {
      // Inside a number that is being typed, left and right move the text cursor.
      if (this.editable && key === "ArrowLeft" && target.selectionStart > 0) return;
      if (this.editable && key === "ArrowRight" && target.selectionEnd < target.value.length)
        return;
      row += MOVES[key][0] * rows;
      column += MOVES[key][1] * columns;
    } else if (key === "Home" || key === "End") {
      if (this.editable && !ctrlKey) return;
      const last = key === "End";
      column = last ? C * W - columns : 0;
      if (ctrlKey) row = last ? N * H - rows : 0;
    } else return;
    event.preventDefault();
    if (row < 0 || column < 0 || row >= N * H || column >= C * W) return;
    this.focus(atCell(this.shape, row, column));
  }
}
