// The architecture tab: settings, the drawing, the table that unfolds, and the details of one node. Two models may
// stand side by side; rows that differ are marked.
"use strict";

const ArchitectureView = (() => {
  const SIDES = ["a", "b"];

  let state;
  let onChange = () => {};

  // ---- the state, and the link that holds it

  function read(parameters) {
    const b = parameters.has("b.model") ? Settings.sideFrom(parameters, "b.", "resnet101") : null;
    const open = (parameters.get("open") ?? "").split(",").filter(Boolean);
    state = {
      a: Settings.sideFrom(parameters, "", Settings.DEFAULTS.model),
      b,
      open: new Set(open),
      at: parameters.get("at") ?? "",
    };
  }

  function write(parameters) {
    for (const [side, prefix] of [
      [state.a, ""],
      [state.b, "b."],
    ]) {
      if (!side) continue;
      const usual = Settings.defaultsOf(side.model);
      parameters.set(`${prefix}model`, side.model);
      for (const [key, value] of Object.entries(side)) {
        if (key !== "model" && value !== usual[key]) parameters.set(prefix + key, value === true ? "1" : value);
      }
    }
    if (state.open.size) parameters.set("open", [...state.open].join(","));
    if (state.at) parameters.set("at", state.at);
  }

  function change(update) {
    update();
    render();
    onChange();
  }

  // ---- numbers

  function summary(letter, root) {
    const last = root.children[root.children.length - 2];
    const cards = [
      ["parameters", rounded(root.parameters), exact(root.parameters)],
      ["multiply-adds", rounded(root.multiplyAdds), `${exact(root.multiplyAdds)}; 1 = 2 FLOPs`],
      ["kept for the backward pass", inBytes(root.kept), "one image, float32"],
      [
        "the last map sees",
        last.field === null ? "all" : `${exact(last.field)} px`,
        `${asShape(last.shape)}, every ${last.step} px`,
      ],
    ];
    return html(
      "dl",
      { class: "summary", "aria-label": `Totals of ${state[letter].model}` },
      cards.map(([what, large, small]) =>
        html("div", {}, html("dt", {}, what), html("dd", {}, html("strong", {}, large), html("small", {}, small))),
      ),
    );
  }

  function figure(letter, root) {
    return html(
      "figure",
      { class: `side side-${letter}` },
      html(
        "figcaption",
        {},
        state.b && span(`badge ${letter}`, letter.toUpperCase()),
        html("strong", {}, state[letter].model),
        ` at ${state[letter].size} × ${state[letter].size}`,
      ),
      summary(letter, root),
      html(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": `Drawing of ${state[letter].model}` },
        Diagrams.network(root, state.at, pick, state[letter].model),
      ),
      Diagrams.legend(),
      div("shares", Diagrams.shares(root)),
    );
  }

  function pick(path) {
    change(() => {
      const folded = path.split(".");
      state.at = path;
      if (folded.length > 1) state.open.add(`${folded[0]}.more`);
      if (/^(stem|head|layer\d)/.test(path))
        for (let length = 1; length < folded.length; length++) state.open.add(folded.slice(0, length).join("."));
    });
  }

  // ---- the details of one node

  // The definition's lines with those that hold the name marked.
  function listing([definition, name]) {
    const { file, line, text } = SOURCES[definition];
    const code = text
      .split("\n")
      .map((words, index) =>
        html("span", { class: words.includes(name) ? "line marked" : "line", "data-line": line + index }, words || " "),
      );
    return html(
      "figure",
      { class: "source" },
      html("figcaption", {}, `${file}, ${definition}`),
      html("pre", { tabindex: 0, role: "region", "aria-label": `Source of ${definition}` }, html("code", {}, code)),
    );
  }

  function details(letter, root) {
    const nodes = Architecture.flatten(root);
    const node = nodes.get(state.at) ?? nodes.get(state.at.split(".")[0]) ?? root;
    const parent = nodes.get(node.path.split(".").slice(0, -1).join(".")) ?? root;
    const holder = [...nodes.values()].find((each) => each.children.includes(node)) ?? parent;
    const drawn = node.children.length ? node : holder;
    return html(
      "section",
      { class: "panel details", "aria-label": `Details of ${node.path || state[letter].model}` },
      html("h2", {}, state.b && span(`badge ${letter}`, letter.toUpperCase()), node.path || state[letter].model),
      html("p", { class: "what" }, node.kind === "network" ? "Choose a stage, a block or a layer." : node.layers),
      Diagrams.chain(drawn, pick, node.path),
      html(
        "dl",
        { class: "facts" },
        [
          ["output", asShape(node.shape)],
          ["parameters", exact(node.parameters)],
          ["multiply-adds", exact(node.multiplyAdds)],
          ["sees", asField(node)],
          ["kept for the backward pass", `${exact(node.kept)} bytes`],
        ].map(([what, value]) => html("div", {}, html("dt", {}, what), html("dd", {}, value))),
      ),
      node.formula.length > 0 &&
        html(
          "ul",
          { class: "formula" },
          node.formula.map(([what, words, result]) =>
            html("li", {}, html("span", {}, what), html("code", {}, `${words} = ${exact(result)}`)),
          ),
        ),
      node.source.map(listing),
    );
  }

  function showMarkedLines() {
    for (const pre of document.querySelectorAll(".source pre")) {
      const marked = pre.querySelector(".marked");
      if (marked) pre.scrollTop = marked.offsetTop - 40;
    }
  }

  function describe(side) {
    return Architecture.describe(side, MODELS[side.model]);
  }

  // What a model is first compared with: a deeper one of its family.
  function peerOf(model) {
    const [usual, other] =
      MODELS[model].family === "cifar" ? ["cifar_resnet56", "cifar_resnet20"] : ["resnet101", "resnet50"];
    return model === usual ? other : usual;
  }

  function render() {
    const letters = state.b ? SIDES : ["a"];
    const roots = SIDES.map((letter) => state[letter] && describe(state[letter]));
    replace(
      byId("settings"),
      letters.map((letter) =>
        Settings.form(letter, state[letter], Boolean(state.b), (side) =>
          change(() => {
            state[letter] = side;
          }),
        ),
      ),
      html(
        "button",
        {
          type: "button",
          class: "compare",
          "data-key": "compare",
          "aria-pressed": String(Boolean(state.b)),
          onclick: () =>
            change(() => {
              state.b = state.b ? null : Settings.withModel(state.a, peerOf(state.a.model));
            }),
        },
        state.b ? "Close the comparison" : "Compare with another model",
      ),
    );
    replace(
      byId("figures"),
      letters.map((letter, index) => figure(letter, roots[index])),
    );
    replace(byId("table"), LayerTable.show({ state, roots, change, pick }));
    replace(
      byId("details"),
      letters.map((letter, index) => details(letter, roots[index])),
    );
    showMarkedLines();
  }

  return {
    read,
    write,
    render,
    describe: (settings) =>
      Architecture.describe({ ...Settings.defaultsOf(settings.model), ...settings }, MODELS[settings.model]),
    set onChange(listener) {
      onChange = listener;
    },
  };
})();
