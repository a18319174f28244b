// Figures are drawn on canvases, which style sheets do not reach: their text and lines get the page's colours from here, again
// when the page turns dark or light. A printer gets copies, since nothing is drawn anew while a browser prints.
// `data-drawn` of the page says how many figures are there.
(() => {
  "use strict";
  const PAPER = { ink: "#000000", line: "#cccccc", legend: null };
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function ofScreen() {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    return { ink, line: style.getPropertyValue("--line").trim(), legend: ink };
  }

  function changes(model, { ink, line, legend }) {
    switch (model.type) {
      case "LinearAxis": case "LogAxis": case "CategoricalAxis":
        return { axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink,
          major_tick_line_color: ink, minor_tick_line_color: line };
      case "Grid": return { grid_line_color: line };
      case "Title": return { text_color: ink };
      case "Legend": return { label_text_color: legend, inactive_fill_color: null };
      case "Text": return { text_color: ink };
      default: return null;
    }
  }

  function paint(colors) {
    for (const shown of Bokeh.documents) {
      for (const model of shown._all_models.values()) {
        const changed = changes(model, colors);
        if (changed !== null) model.setv(changed);
      }
    }
  }

  // Copies have legends of their own, since the swatches of these are not copied.
  function swatch(item) {
    const entry = document.createElement("span");
    const box = document.createElement("i");
    const glyph = item.renderers[0].glyph;
    box.style.background = (glyph.fill_color ?? glyph.line_color).value;
    entry.append(box, item.label.value);
    return entry;
  }

  function copyOf(view) {
    const copy = document.createElement("div");
    copy.className = "paper";
    const legend = document.createElement("p");
    for (const model of view.model.above) {
      if (model.type === "Legend") legend.append(...model.items.map(swatch));
    }
    copy.append(legend, view.export("png").canvas);
    return copy;
  }

  function toPaper() {
    paint(PAPER);
    // Glyphs take up new colours at once only when they are told to.
    for (const view of Bokeh.index.roots) {
      for (const each of view.computed_renderer_views ?? []) {
        if (each.model.type === "GlyphRenderer" && each.glyph.model.type === "Text") void each.set_visuals();
      }
    }
    for (const view of Bokeh.index.roots) {
      if (view.model.type === "Figure") view.el.parentElement.after(copyOf(view));
    }
    document.documentElement.classList.add("printing");
  }

  function fromPaper() {
    for (const copy of document.querySelectorAll(".paper")) copy.remove();
    document.documentElement.classList.remove("printing");
    paint(ofScreen());
  }

  function drawn() {
    const wanted = Number(document.body.dataset.figures);
    const there = wanted === 0 ? 0 : Bokeh.documents.reduce((sum, each) => sum + each.roots().length, 0);
    if (there < wanted || (wanted > 0 && !Bokeh.documents.every((each) => each.is_idle))) {
      setTimeout(drawn, 20);
      return;
    }
    if (wanted > 0) {
      paint(ofScreen());
      dark.addEventListener("change", () => paint(ofScreen()));
      window.addEventListener("beforeprint", toPaper);
      window.addEventListener("afterprint", fromPaper);
    }
    document.body.dataset.drawn = String(there);
  }
  drawn();
})();
