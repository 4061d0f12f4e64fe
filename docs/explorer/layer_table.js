// The table of layers, which unfolds. Of two models it shows both, and marks what differs.
"use strict";

const LayerTable = (() => {
  const NUMBERS = [
    ["parameters", "Parameters", ({ parameters }) => exact(parameters)],
    ["multiplyAdds", "Multiply-adds", ({ multiplyAdds }) => exact(multiplyAdds)],
    ["field", "Sees", asField],
    ["kept", "Memory", ({ kept }) => inBytes(kept)],
  ];

  // The two networks' children, matched by path, the first's order kept.
  function matched(left, right) {
    const paths = [...new Set([...(left?.children ?? []), ...(right?.children ?? [])].map((node) => node.path))];
    const find = (node, path) => node?.children.find((child) => child.path === path);
    return paths.map((path) => [path, [find(left, path), find(right, path)]]);
  }

  function rows(pair, depth, page) {
    return matched(...pair.map((node) => node && Architecture.withRepeatsFolded(node))).flatMap(([path, nodes]) => {
      const node = nodes[0] ?? nodes[1];
      const isOpen = page.state.open.has(path);
      const line = row(path, node, nodes, depth, isOpen, page);
      return isOpen ? [line, ...rows(nodes, depth + 1, page)] : [line];
    });
  }

  function row(path, node, nodes, depth, isOpen, { state, roots, change, pick }) {
    const shown = state.b ? nodes : [nodes[0]];
    const cell = (key, format, share) => {
      const texts = shown.map((each) => (each ? format(each) : "—"));
      const differs = texts.length > 1 && texts[0] !== texts[1];
      return html(
        "td",
        { class: differs ? "differs" : null },
        differs && html("span", { class: "mark", title: "The two models differ here." }, "≠"),
        (differs || texts.length === 1 ? texts : [texts[0]]).map((text, index) =>
          html(
            "span",
            { class: differs ? `value ${"ab"[index]}` : "value" },
            text,
            share &&
              shown[index]?.[key] > 0 &&
              html("span", {
                class: "part",
                style: `width: ${(100 * shown[index][key]) / (roots[index][key] || 1)}%; background: ${Diagrams.bandColour(path)}`,
              }),
          ),
        ),
      );
    };
    const longest = nodes
      .filter(Boolean)
      .reduce((left, right) => (right.children.length > left.children.length ? right : left));
    const short =
      node.kind === "repeats"
        ? `2 … ${longest.children.length + 1}`
        : depth === 0
          ? Diagrams.nameOf(node, roots[0] ?? roots[1])
          : path.split(".").pop();
    const fold = node.children.length
      ? html(
          "button",
          {
            type: "button",
            class: "fold",
            "data-key": `fold-${path}`,
            "aria-expanded": String(isOpen),
            "aria-label": `${isOpen ? "Fold" : "Unfold"} ${path}`,
            onclick: () =>
              change(() => {
                if (isOpen) state.open.delete(path);
                else state.open.add(path);
              }),
          },
          isOpen ? "▾" : "▸",
        )
      : span("fold");
    return html(
      "tr",
      {
        class: `${node.kind}${state.at === path ? " chosen" : ""}`,
        style: `--band: ${Diagrams.bandColour(path)}; --depth: ${depth}`,
        "data-path": path,
      },
      html(
        "th",
        { scope: "row" },
        fold,
        html(
          "button",
          {
            type: "button",
            class: "pick",
            "data-key": `pick-${path}`,
            "aria-pressed": String(state.at === path),
            onclick: () => pick(path),
          },
          short,
        ),
      ),
      cell("layers", (each) => each.layers, false),
      cell("shape", (each) => asShape(each.shape), false),
      NUMBERS.map(([key, , format]) => cell(key, format, key !== "field")),
    );
  }

  // `page` holds the state, both networks (or one and null) and what to call for a change.
  function show(page) {
    const { roots, change } = page;
    const heads = ["Layer", "Computes", "Output, C × H × W", ...NUMBERS.map(([, words]) => words)];
    const body = rows(roots, 0, page);
    const all = [
      ...new Set(
        roots
          .filter(Boolean)
          .flatMap((root) =>
            [...Architecture.flatten(root).values()]
              .filter((node) => node.children.length && node.path)
              .map((node) => node.path),
          ),
      ),
    ];
    const stages = all.filter((path) => !path.includes("."));
    const repeats = stages.map((path) => `${path}.more`);
    const tool = (words, paths) =>
      html(
        "button",
        {
          type: "button",
          "data-key": `unfold-${words}`,
          onclick: () =>
            change(() => {
              page.state.open = new Set(paths);
            }),
        },
        words,
      );
    return html(
      "div",
      { class: "panel table" },
      div(
        "tools",
        html("h2", {}, "Layer by layer"),
        tool("Fold all", []),
        tool("Blocks", stages),
        tool("Layers", [...all, ...repeats]),
      ),
      html(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of layers" },
        html(
          "table",
          {},
          html(
            "thead",
            {},
            html(
              "tr",
              {},
              heads.map((head) => html("th", { scope: "col" }, head)),
            ),
          ),
          html("tbody", {}, body),
        ),
      ),
    );
  }

  return { show };
})();
