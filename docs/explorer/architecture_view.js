// The architecture tab: settings, the drawing, the table that unfolds, and the details of one node. Two models may
// stand side by side; rows that differ are marked.
"use strict";

const ArchitectureView = (() => {
  const DEFAULTS = { model: "resnet50", size: 224, classes: 1000, channels: 3, groups: 1, width: 64, v1: false, small: false, shortcut: "A" };
  const LIMITS = { size: [1, 4096], classes: [1, 100000], channels: [1, 1000], groups: [1, 1024], width: [1, 4096] };
  const CIFAR = { size: 32, classes: 10 };
  const SIDES = ["a", "b"];

  let state;
  let onChange = () => {};

  // The defaults of a model, of which CIFAR's networks have others.
  const defaultsOf = (model) => ({ ...DEFAULTS, model, ...(MODELS[model].family === "cifar" ? CIFAR : {}), ...MODELS[model].fixed });

  // ---- the state, and the link that holds it

  function sideFrom(parameters, prefix, fallback) {
    const model = parameters.get(`${prefix}model`) ?? fallback;
    const side = defaultsOf(model in MODELS ? model : DEFAULTS.model);
    for (const [key, [least, most]] of Object.entries(LIMITS)) {
      const value = Number(parameters.get(prefix + key));
      if (Number.isInteger(value) && value >= least && value <= most) side[key] = value;
    }
    for (const key of ["v1", "small"]) side[key] = parameters.get(prefix + key) === "1";
    if (parameters.get(`${prefix}shortcut`) === "B") side.shortcut = "B";
    return side;
  }

  function read(parameters) {
    const b = parameters.has("b.model") ? sideFrom(parameters, "b.", "resnet101") : null;
    const open = (parameters.get("open") ?? "").split(",").filter(Boolean);
    state = { a: sideFrom(parameters, "", DEFAULTS.model), b, open: new Set(open), at: parameters.get("at") ?? "" };
  }

  function write(parameters) {
    for (const [side, prefix] of [[state.a, ""], [state.b, "b."]]) {
      if (!side) continue;
      const usual = defaultsOf(side.model);
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

  // ---- settings

  function numberField(letter, key, words, disabled) {
    const [least, most] = LIMITS[key];
    const id = `${letter}-${key}`;
    return html("label", { for: id }, words,
      html("input", {
        id, "data-key": id, type: "number", min: least, max: most, step: 1, value: state[letter][key], disabled,
        onchange: ({ target }) => change(() => {
          const value = Math.round(Number(target.value)) || least;
          state[letter][key] = Math.min(most, Math.max(least, value));
        }),
      }));
  }

  function choice(letter, key, words, options, value, disabled, take) {
    const id = `${letter}-${key}`;
    return html("label", { for: id }, words,
      html("select", { id, "data-key": id, disabled, onchange: ({ target }) => change(() => take(target.value)) },
        options.map(([option, label]) => html("option", { value: option, selected: option === value }, label))));
  }

  function settings(letter) {
    const side = state[letter];
    const row = MODELS[side.model];
    const isCifar = row.family === "cifar";
    const basic = row.block === "BasicBlock";
    const fixed = basic || Object.keys(row.fixed).length > 0;
    const names = Object.keys(MODELS).map((name) => [name, name]);
    const fields = [
      choice(letter, "model", "Model", names, side.model, false, (model) => { state[letter] = { ...defaultsOf(model), ...keptOf(side, model) }; }),
      numberField(letter, "size", "Image size, px", false),
      numberField(letter, "classes", "Classes", false),
      numberField(letter, "channels", "Image channels", false),
      numberField(letter, "groups", "Groups", fixed),
      numberField(letter, "width", "Width per group", fixed),
      isCifar
        ? choice(letter, "shortcut", "Shortcut", [["A", "A: zeros"], ["B", "B: projection"]], side.shortcut, false, (value) => { side.shortcut = value; })
        : choice(letter, "stem", "Stem", [["", "7x7 and max pool"], ["1", "small images: 3x3"]], side.small ? "1" : "", false, (value) => { side.small = Boolean(value); }),
      !isCifar && choice(letter, "form", "Stride sits on", [["", basic ? "the first 3x3" : "the 3x3 (v1.5)"], ["1", "the first 1x1 (v1)"]], side.v1 ? "1" : "", basic, (value) => { side.v1 = Boolean(value); }),
    ];
    const why = basic ? "A BasicBlock has neither groups nor another width, and no 1x1." : fixed ? `${side.model} is ResNet with these groups and this width; choose resnet50 or resnet101 to change them.` : "";
    return html("form", { class: `settings side-${letter}`, "aria-label": `Model ${letter.toUpperCase()}`, onsubmit: (event) => event.preventDefault() },
      state.b && html("span", { class: `badge ${letter}`, "aria-hidden": "true" }, letter.toUpperCase()), fields, html("p", { class: "hint" }, why));
  }

  // What stays when another model is chosen: the image, unless the model is of another family.
  const keptOf = (side, model) =>
    MODELS[side.model].family === MODELS[model].family ? { size: side.size, classes: side.classes, channels: side.channels, small: side.small, shortcut: side.shortcut, v1: side.v1 && MODELS[model].block === "Bottleneck" } : {};

  // ---- numbers

  const NUMBERS = [
    ["parameters", "Parameters", ({ parameters }) => exact(parameters)],
    ["multiplyAdds", "Multiply-adds", ({ multiplyAdds }) => exact(multiplyAdds)],
    ["field", "Sees", asField],
    ["kept", "Memory", ({ kept }) => inBytes(kept)],
  ];

  function summary(letter, root) {
    const last = root.children[root.children.length - 2];
    const cards = [
      ["parameters", rounded(root.parameters), exact(root.parameters)],
      ["multiply-adds", rounded(root.multiplyAdds), `${exact(root.multiplyAdds)}; 1 = 2 FLOPs`],
      ["kept for the backward pass", inBytes(root.kept), "one image, float32"],
      ["the last map sees", last.field === null ? "all" : `${exact(last.field)} px`, `${asShape(last.shape)}, every ${last.step} px`],
    ];
    return html("dl", { class: "summary", "aria-label": `Totals of ${state[letter].model}` }, cards.map(([what, large, small]) =>
      html("div", {}, html("dt", {}, what), html("dd", {}, html("strong", {}, large), html("small", {}, small)))));
  }

  function figure(letter, root) {
    return html("figure", { class: `side side-${letter}` },
      html("figcaption", {}, state.b && html("span", { class: `badge ${letter}` }, letter.toUpperCase()), html("strong", {}, state[letter].model), ` at ${state[letter].size} × ${state[letter].size}`),
      summary(letter, root),
      html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Drawing of ${state[letter].model}` }, Diagrams.network(root, state.at, pick, state[letter].model)),
      html("div", { class: "shares" }, Diagrams.shares(root)));
  }

  function pick(path) {
    change(() => {
      const folded = path.split(".");
      state.at = path;
      if (/^(stem|head|layer\d)/.test(path)) for (let length = 1; length < folded.length; length++) state.open.add(folded.slice(0, length).join("."));
    });
  }

  // ---- the table

  // The two networks' children, matched by path, the first's order kept.
  function matched(left, right) {
    const paths = [...new Set([...(left?.children ?? []), ...(right?.children ?? [])].map((node) => node.path))];
    const find = (node, path) => node?.children.find((child) => child.path === path);
    return paths.map((path) => [path, [find(left, path), find(right, path)]]);
  }

  function rows(pair, roots, depth) {
    return matched(...pair).flatMap(([path, nodes]) => {
      const node = nodes[0] ?? nodes[1];
      const isOpen = state.open.has(path);
      const line = row(path, node, nodes, roots, depth, isOpen);
      return isOpen ? [line, ...rows(nodes, roots, depth + 1)] : [line];
    });
  }

  function row(path, node, nodes, roots, depth, isOpen) {
    const shown = state.b ? nodes : [nodes[0]];
    const cell = (key, format, share) => {
      const texts = shown.map((each) => (each ? format(each) : "—"));
      const differs = texts.length > 1 && texts[0] !== texts[1];
      return html("td", { class: differs ? "differs" : null }, differs && html("span", { class: "mark", title: "The two models differ here." }, "≠"),
        (differs || texts.length === 1 ? texts : [texts[0]]).map((text, index) => html("span", { class: differs ? `value ${SIDES[index]}` : "value" }, text,
          share && shown[index]?.[key] > 0 && html("span", { class: "part", style: `width: ${100 * shown[index][key] / (roots[index][key] || 1)}%; background: ${Diagrams.bandColour(path)}` }))));
    };
    const short = depth === 0 ? Diagrams.nameOf(node, roots[0] ?? roots[1]) : path.split(".").pop();
    const fold = node.children.length
      ? html("button", { type: "button", class: "fold", "data-key": `fold-${path}`, "aria-expanded": String(isOpen), "aria-label": `${isOpen ? "Fold" : "Unfold"} ${path}`, onclick: () => change(() => { if (isOpen) state.open.delete(path); else state.open.add(path); }) }, isOpen ? "▾" : "▸")
      : html("span", { class: "fold" });
    return html("tr", { class: `${node.kind}${state.at === path ? " chosen" : ""}`, style: `--band: ${Diagrams.bandColour(path)}; --depth: ${depth}`, "data-path": path },
      html("th", { scope: "row" }, fold, html("button", { type: "button", class: "pick", "data-key": `pick-${path}`, "aria-pressed": String(state.at === path), onclick: () => pick(path) }, short)),
      cell("layers", (each) => each.layers, false),
      cell("shape", (each) => asShape(each.shape), false),
      NUMBERS.map(([key, , format]) => cell(key, format, key !== "field")));
  }

  function table(roots) {
    const heads = ["Layer", "Computes", "Output, C × H × W", ...NUMBERS.map(([, words]) => words)];
    const body = rows(roots, roots, 0);
    const all = [...new Set(roots.filter(Boolean).flatMap((root) => [...Architecture.flatten(root).values()].filter((node) => node.children.length && node.path).map((node) => node.path)))];
    const stages = all.filter((path) => !path.includes("."));
    const tool = (words, paths) => html("button", { type: "button", "data-key": `unfold-${words}`, onclick: () => change(() => { state.open = new Set(paths); }) }, words);
    return html("div", { class: "panel table" },
      html("div", { class: "tools" }, html("h2", {}, "Layer by layer"), tool("Fold all", []), tool("Blocks", stages), tool("Layers", all)),
      html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of layers" },
        html("table", {}, html("thead", {}, html("tr", {}, heads.map((head) => html("th", { scope: "col" }, head)))), html("tbody", {}, body))));
  }

  // ---- the details of one node

  // The definition's lines with those that hold the name marked.
  function listing([definition, name]) {
    const { file, line, text } = SOURCES[definition];
    const code = text.split("\n").map((words, index) =>
      html("span", { class: words.includes(name) ? "line marked" : "line", "data-line": line + index }, words || " "));
    return html("figure", { class: "source" }, html("figcaption", {}, `${file}, ${definition}`), html("pre", { tabindex: 0, role: "region", "aria-label": `Source of ${definition}` }, html("code", {}, code)));
  }

  function details(letter, root) {
    const nodes = Architecture.flatten(root);
    const node = nodes.get(state.at) ?? nodes.get(state.at.split(".")[0]) ?? root;
    const parent = nodes.get(node.path.split(".").slice(0, -1).join(".")) ?? root;
    const holder = [...nodes.values()].find((each) => each.children.includes(node)) ?? parent;
    const drawn = node.children.length ? node : holder;
    return html("section", { class: "panel details", "aria-label": `Details of ${node.path || state[letter].model}` },
      html("h2", {}, state.b && html("span", { class: `badge ${letter}` }, letter.toUpperCase()), node.path || state[letter].model),
      html("p", { class: "what" }, node.kind === "network" ? "Choose a stage, a block or a layer." : node.layers),
      Diagrams.chain(drawn, pick, node.path),
      html("dl", { class: "facts" },
        [["output", asShape(node.shape)], ["parameters", exact(node.parameters)], ["multiply-adds", exact(node.multiplyAdds)], ["sees", asField(node)], ["kept for the backward pass", `${exact(node.kept)} bytes`]].map(([what, value]) => html("div", {}, html("dt", {}, what), html("dd", {}, value)))),
      node.formula.length > 0 && html("ul", { class: "formula" }, node.formula.map(([what, words, result]) => html("li", {}, html("span", {}, what), html("code", {}, `${words} = ${exact(result)}`)))),
      node.source.map(listing));
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

  function render() {
    const letters = state.b ? SIDES : ["a"];
    const roots = SIDES.map((letter) => state[letter] && describe(state[letter]));
    replace(byId("settings"), letters.map(settings),
      html("button", { type: "button", class: "compare", "data-key": "compare", "aria-pressed": String(Boolean(state.b)), onclick: () => change(() => { state.b = state.b ? null : { ...state.a, ...defaultsOf(state.a.model === "resnet101" ? "resnet50" : MODELS[state.a.model].family === "cifar" ? "cifar_resnet56" : "resnet101") }; }) },
        state.b ? "Close the comparison" : "Compare with another model"));
    replace(byId("figures"), letters.map((letter, index) => figure(letter, roots[index])));
    replace(byId("table"), table(roots));
    replace(byId("details"), letters.map((letter, index) => details(letter, roots[index])));
    showMarkedLines();
  }

  return {
    read,
    write,
    render,
    describe: (settings) => Architecture.describe({ ...defaultsOf(settings.model), ...settings }, MODELS[settings.model]),
    set onChange(listener) { onChange = listener; },
  };
})();
