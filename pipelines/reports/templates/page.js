"use strict";
(() => {
  const ROWS_AT_A_TIME = 200;
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  /** Makes an element; texts become text nodes, so that no name is read as HTML. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const named = (name) => make("bdi", {}, name);
  const percent = (value, digits = 1) =>
    value === null ? "–" : `${(100 * value).toFixed(digits)} %`;

  const significant = (value) => value.toLocaleString("en", {
    minimumSignificantDigits: 4, maximumSignificantDigits: 4 });

  // Charts ---------------------------------------------------------------------------------------

  const views = new Map();

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const [ink, muted, grid] = ["ink", "muted", "grid"].map(color);
    const font = getComputedStyle(document.body).fontFamily;
    return {
      font,
      axis: { labelColor: muted, titleColor: muted, gridColor: grid, domainColor: muted,
              tickColor: muted, titleFontWeight: "normal" },
      legend: { labelColor: ink, titleColor: muted, symbolLimit: 40,
                ...(innerWidth < 600 ? { columns: 1 } : {}) },
      view: { stroke: "transparent" },
      title: { color: ink },
      range: { category: ["#3b82c4", "#c77700", "#d1495b", "#7a7f87", "#2f9e74", "#9a6bc9"] },
    };
  }

  async function draw(place) {
    const name = place.dataset.chart;
    const specification = data.charts[name];
    if (name === "curve") specification.datasets.rows = curve();
    if (!specification.datasets.rows.length) return;
    const { view } = await vegaEmbed(place, specification, {
      // The page forbids to make code of texts, which Vega would do with its expressions.
      ast: true,
      renderer: specification.datasets.rows.length > 1500 ? "canvas" : "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      config: theme(),
      downloadFileName: name,
    });
    views.get(name)?.finalize();
    views.set(name, view);
    if (name === data.chooser) {
      view.addSignalListener("chosen", (_, chosen) => {
        if (chosen.id?.length) choose(chosen.id[0], true);
      });
    }
  }

  const places = [...document.querySelectorAll("[data-chart]")];
  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((e) => e.isIntersecting)) {
        seen.unobserve(entry.target);
        entry.target.dataset.wanted = "now";
        draw(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  places.forEach((place) => {
    seen.observe(place);
    // A finger that does not move is no pointer that does, which is what tooltips wait for.
    place.addEventListener("click", ({ target, clientX, clientY }) => target.dispatchEvent(
      new PointerEvent("pointermove", { clientX, clientY, bubbles: true })));
  });
  const drawn = () => places.filter((place) => views.has(place.dataset.chart));
  dark.addEventListener("change", () => drawn().forEach(draw));
  addEventListener("beforeprint", () => places.filter((p) => !drawn().includes(p)).forEach(draw));
  document.querySelectorAll("details").forEach((details) =>
    details.addEventListener("toggle", () => dispatchEvent(new Event("resize"))),
  );

  // Tables ---------------------------------------------------------------------------------------

  function shown({ values, text, digits, signed }, index) {
    const value = values[index];
    if (text) return value;
    const sign = signed && value > 0 ? "+" : "";
    return value === null ? "–" : sign + value.toLocaleString("en", {
      minimumFractionDigits: digits, maximumFractionDigits: digits });
  }

  const classOf = ({ text, extra }) =>
    [text && "l", extra && "extra"].filter(Boolean).join(" ") || null;

  class Table {
    constructor(root) {
      this.root = root;
      this.columns = data.tables[root.dataset.table];
      this.picks = panel && root.dataset.table === "labels";
      this.body = root.querySelector("tbody");
      this.box = root.querySelector(".scroll");
      this.sorted = { column: null, descending: false };
      this.order = this.columns[0].values.map((_, row) => row);
      this.lower = this.columns[0].values.map((name) => name.toLowerCase());
      this.search = root.querySelector("input[type=search]");
      this.group = root.querySelector("[data-group]");
      this.flags = [...root.querySelectorAll("[data-flag]")];
      this.addHeadings();
      this.explainHeadings();
      const more = root.querySelector("[data-more]");
      more?.addEventListener("change", () =>
        root.querySelector("table").classList.toggle("more", more.checked));
      for (const event of ["input", "change"]) {
        root.querySelector(".controls").addEventListener(event, () => this.filter());
      }
      this.search.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && this.shown.length) this.pick(this.shown[0]);
      });
      this.box.addEventListener("scroll", () => {
        if (this.box.scrollTop + 2 * this.box.clientHeight > this.box.scrollHeight) this.addRows();
      });
      addEventListener("beforeprint", () => this.addRows(Infinity));
      this.filter();
    }

    addHeadings() {
      const row = make("tr");
      this.headings = this.columns.map((column, k) => {
        const button = make("button", { type: "button", title: column.title || null }, column.heading);
        button.addEventListener("click", () => this.sort(k));
        const heading = make("th", { scope: "col", class: classOf(column) }, button);
        row.append(heading);
        return heading;
      });
      this.root.querySelector("thead").append(row);
    }

    explainHeadings() {
      const explained = this.columns.filter((column) => column.title);
      this.root.querySelector("dl").append(...explained.flatMap(({ heading, title }) =>
        [make("dt", {}, heading), make("dd", {}, title)]));
    }

    sort(k) {
      const { text, values } = this.columns[k];
      const again = this.sorted.column === k;
      const descending = again ? !this.sorted.descending : !text;
      const sign = descending ? -1 : 1;
      const compare = text
        ? (a, b) => sign * values[a].localeCompare(values[b])
        : (a, b) => (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]);
      this.order.sort((a, b) => compare(a, b) || a - b);
      this.sorted = { column: k, descending };
      this.headings.forEach((heading, at) => {
        if (at === k) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else heading.removeAttribute("aria-sort");
        heading.firstChild.textContent =
          this.columns[at].heading + (at === k ? (descending ? " ▼" : " ▲") : "");
      });
      this.filter();
    }

    filter() {
      const words = this.search.value.toLowerCase();
      const group = this.group?.value;
      const groups = this.columns.find((column) => column.heading === "group")?.values;
      const flags = this.flags.filter((box) => box.checked).map((box) => data.flags[box.dataset.flag]);
      this.shown = this.order.filter(
        (row) =>
          this.lower[row].includes(words) &&
          (!group || groups[row] === group) &&
          flags.every((flag) => flag[row]),
      );
      this.root.querySelector("output").textContent =
        `${this.shown.length.toLocaleString("en")} of ${this.order.length.toLocaleString("en")}`;
      this.body.replaceChildren();
      this.box.scrollTop = 0;
      this.addRows();
    }

    addRows(number = ROWS_AT_A_TIME) {
      const start = this.body.childElementCount;
      this.body.append(...this.shown.slice(start, start + number).map((row) => this.row(row)));
    }

    row(index) {
      const [first, ...others] = this.columns;
      const name = named(first.values[index]);
      let label = name;
      if (this.picks) {
        label = make("button", { type: "button" }, name);
        label.addEventListener("click", () => this.pick(index));
      }
      const cells = others.map((column) =>
        make("td", { class: classOf(column) }, shown(column, index)));
      const row = make("tr", { "data-row": index },
        make("th", { scope: "row", title: first.values[index] }, label), ...cells);
      row.classList.toggle("chosen", this.picks && index === chosen);
      return row;
    }

    pick(index) {
      if (this.picks) choose(index, true);
    }

    mark() {
      for (const row of this.body.children) {
        row.classList.toggle("chosen", Number(row.dataset.row) === chosen);
      }
    }
  }

  // One label --------------------------------------------------------------------------------------

  let chosen = null;
  let point = 0;
  const panel = document.getElementById("label");
  const tables = new Map();
  const columnOf = (heading) => data.tables.labels.find((column) => column.heading === heading);
  const value = (heading, index) => columnOf(heading)?.values[index] ?? null;

  function choose(index, go) {
    chosen = index;
    tables.get("labels").mark();
    panel.querySelector("[data-name]").textContent = value("label", index);
    if (data.curves) {
      panel.querySelector("[data-facts]").textContent = facts(index);
      const slider = panel.querySelector("input[type=range]");
      const last = data.curves[index].thresholds.length - 1;
      slider.max = Math.max(last, 0);
      slider.disabled = last < 0;
      move(data.curves[index].own);
      showOthers();
    } else {
      panel.querySelector("[data-facts]").textContent = data.facts[index];
      for (const cell of panel.querySelectorAll("[data-cell]")) {
        cell.textContent = shown(columnOf(cell.dataset.cell), index);
      }
    }
    showImages();
    if (go) {
      location.hash = `label-${index}`;
      document.getElementById("one").scrollIntoView();
    }
  }

  function facts(index) {
    const [ap, low, high, guessing] = ["AP %", "from", "to", "guessing %"].map((h) => value(h, index));
    return (
      `${value("group", index)}: ${value("train images", index).toLocaleString("en")} training and ` +
      `${value("test images", index).toLocaleString("en")} test images have it. ` +
      (ap === null
        ? "Without test images nothing can be measured."
        : `Average precision ${ap.toFixed(1)} %` +
          (low === null ? "" : ` (95 % interval ${low.toFixed(1)} to ${high.toFixed(1)} %)`) +
          `; guessing would reach ${guessing.toFixed(1)} %.`) +
      (data.flags.unreliable[index] ? " Its probabilities are off by more than chance explains." : "")
    );
  }

  function move(to) {
    point = to;
    const { thresholds } = data.curves[chosen];
    // To the right, the threshold rises.
    const slider = panel.querySelector("input[type=range]");
    slider.value = thresholds.length - 1 - point;
    const show = (name, text) => {
      panel.querySelector(`[data-of=${name}]`).textContent = text;
    };
    if (!thresholds.length) {
      for (const cell of panel.querySelectorAll("[data-of]")) cell.textContent = "–";
    } else {
      const { given, right, positives, precision, recall } = at(point);
      slider.setAttribute("aria-valuetext", `threshold ${significant(thresholds[point])}`);
      show("threshold", significant(thresholds[point]));
      show("precision", percent(precision, 2));
      show("recall", percent(recall, 2));
      show("f1", percent((2 * right) / (given + positives), 2));
      show("given", given.toLocaleString("en"));
      show("right", right.toLocaleString("en"));
      show("wrong", (given - right).toLocaleString("en"));
      show("missed", (positives - right).toLocaleString("en"));
    }
    showCurve();
  }

  /** Counts and shares at a point of the curve of the chosen label. */
  function at(k) {
    const [given, right] = ["given", "right"].map((name) => data.curves[chosen][name][k]);
    const positives = value("test images", chosen);
    return { given, right, positives, precision: given ? right / given : 0,
             recall: right / positives };
  }

  function curve() {
    return data.curves[chosen].thresholds.map((threshold, k) => {
      const { precision, recall } = at(k);
      return { label: value("label", chosen), threshold, precision, recall, chosen: k === point };
    });
  }

  function showCurve() {
    const place = panel.querySelector("[data-chart]");
    const rows = curve();
    place.classList.toggle("empty", !rows.length);
    if (!rows.length) return;
    const view = views.get("curve");
    if (view) view.data("rows", rows).runAsync();
    else if (place.dataset.wanted) draw(place);
  }

  function picture(at) {
    const name = data.images.names[at];
    const address = data.images.pictures[at];
    if (!address) return make("div", { class: "none" }, "no picture kept");
    const small = address.startsWith("data:image/png") ? "small" : null;
    return make("img", { src: address, alt: name, loading: "lazy", class: small });
  }

  /** A picture with its name and what was said of it; probabilities of the label at hand. */
  function figure(at, probabilities = []) {
    const numbers = (values, digits) => values.map((p) => percent(p, digits)).join(" → ");
    // One of the model, or those of both models.
    const threshold = (label) => ` (threshold ${numbers([data.thresholds[label]].flat(), 0)})`;
    const said = data.images.said[at].map(([label, kind, ...values]) => {
      const [word, isBad] = data.words[kind];
      return make("div", { class: isBad ? "bad" : null },
        `${word}: `, named(value("label", label)), ` ${numbers(values, 0)}${threshold(label)}`);
    });
    const own = probabilities.length
      ? [make("div", {}, make("b", {}, numbers(probabilities, 1)), threshold(chosen))]
      : [];
    return make("figure", {}, picture(at),
      make("figcaption", {}, named(data.images.names[at]), ...own,
        make("details", { open: own.length ? null : "" },
          make("summary", {}, data.saying ?? "what the model said"), ...said)));
  }

  function showImages() {
    const parts = data.kinds[chosen].flatMap((pairs, kind) => {
      // An image that is listed for its name alone has no place among the pictures.
      const figures = pairs.map(([at, ...probabilities]) => figure(at, probabilities));
      return [make("h3", {}, data.headings[kind]),
              figures.length ? make("div", { class: "images" }, ...figures) : make("p", {}, "None.")];
    });
    panel.querySelector("[data-images]").replaceChildren(...parts);
  }

  function showOthers() {
    const lists = [
      ["instead", "Wrongly given where this one is missed", (n) => `${n.toLocaleString("en")} ×`],
      ["for", "Missed where this one is wrongly given", (n) => `${n.toLocaleString("en")} ×`],
      ["with", "Comes with, in training", (p) => percent(p)],
    ];
    const parts = lists.flatMap(([key, heading, shown]) => {
      const items = data[key][chosen].map(([label, number]) => {
        const button = make("button", { type: "button" }, named(value("label", label)));
        button.addEventListener("click", () => choose(label, true));
        return make("li", {}, button, ` ${shown(number)}`);
      });
      return items.length ? [make("h3", {}, heading), make("ul", {}, ...items)] : [];
    });
    panel.querySelector("[data-others]").replaceChildren(...parts);
  }

  function follow() {
    const match = /^#label-(\d+)$/.exec(location.hash);
    const index = match && Number(match[1]);
    if (match && index < data.kinds.length && index !== chosen) choose(index, true);
  }

  document.querySelectorAll("[data-table]").forEach((root) => {
    tables.set(root.dataset.table, new Table(root));
  });
  if (panel) {
    if (data.curves) {
      panel.querySelector("input[type=range]").addEventListener("input", (event) =>
        move(data.curves[chosen].thresholds.length - 1 - Number(event.target.value)));
      panel.querySelector("[data-reset]").addEventListener("click", () =>
        move(data.curves[chosen].own));
    }
    panel.querySelectorAll("[data-step]").forEach((button) =>
      button.addEventListener("click", () => {
        const { shown } = tables.get("labels");
        const at = shown.indexOf(chosen) + Number(button.dataset.step);
        if (shown.length) choose(shown[(at + shown.length) % shown.length], false);
      }));
    document.querySelectorAll("[data-gallery]").forEach((gallery) =>
      gallery.append(...data.galleries[gallery.dataset.gallery].map((at) => figure(at))));
    choose(data.first, false);
    follow();
    addEventListener("hashchange", follow);
  }
})();
