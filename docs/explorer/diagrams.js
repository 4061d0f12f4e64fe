// Drawings: the whole network as coloured bands, and one node's layers with the shortcut as an arc.
"use strict";

const Diagrams = (() => {
  const WIDTH = 1000;
  const MAP_TOP = 78;
  const FLOOR = 226; // the line on which all bars stand
  const GAP = 12;
  const NARROWEST = 58; // a band that its label fits in

  const bandColour = (path) => `var(--${/^layer[1-4]/.test(path) ? path.slice(0, 6) : "ends"})`;

  // A bar's height is the logarithm of its map's side, its width the square root of its channels.
  const barHeight = ({ shape }) => 8 + 15 * Math.log2(Math.max(1, shape[1] ?? 1));
  const barWidth = ({ shape }) => Math.max(2.5, Math.sqrt(shape[0]) / 2);
  const barsOf = (node) =>
    node.kind === "stage"
      ? node.children
      : node.children.length
        ? node.children.filter((each) => ["conv", "pool", "linear"].includes(each.kind))
        : [node];
  const nameOf = (node, network) => (network.children.length === 7 && Architecture.PAPER_NAMES[node.path]) || node.path;

  function arc(from, to, y, lift, dashed) {
    const path = `M${from},${y} C${from},${y - lift} ${to},${y - lift} ${to},${y}`;
    return svg("path", { d: path, class: "shortcut", "stroke-dasharray": dashed ? "3 2" : null });
  }

  function bar(node, x, width, selected, choose) {
    const height = Math.min(FLOOR - MAP_TOP - 16, barHeight(node));
    const top = FLOOR - height;
    const halves = node.stride > 1 || /stride 2/.test(node.layers);
    const projected =
      node.kind === "block" && node.children.some((each) => each.kind === "shortcut" && each.layers !== "identity");
    return svg(
      "g",
      {
        class: `bar${node.path === selected ? " chosen" : ""}`,
        onclick: (event) => {
          event.stopPropagation();
          choose(node.path);
        },
      },
      svg("title", {}, `${node.path}: ${asShape(node.shape)}`),
      svg("rect", { x, y: top, width, height, rx: Math.min(3, width / 3), fill: bandColour(node.path) }),
      halves && svg("path", { d: `M${x},${FLOOR + 5} h${width}`, class: "stride" }),
      node.kind === "block" && arc(x - 1, x + width + 1, top - 2, Math.min(16, 5 + width), projected),
    );
  }

  // The network from left to right. `choose` is called with the path of what was clicked.
  function network(root, selected, choose, name) {
    const parts = root.children.map((node) => ({ node, bars: barsOf(node) }));
    const gap = (bars) => (bars.length > 12 ? 2 : 4);
    const natural = parts.map(({ bars }) => bars.reduce((sum, each) => sum + barWidth(each) + gap(bars), 0));
    const scale = (WIDTH - (GAP + NARROWEST) * parts.length + GAP) / natural.reduce((sum, width) => sum + width, 0);

    const widths = natural.map((width) => NARROWEST + width * scale);
    const inners = parts.map(({ bars }) => bars.reduce((sum, each) => sum + barWidth(each) + gap(bars), -gap(bars)));
    const stretch = Math.min(...widths.map((width, index) => (width - 16) / inners[index])); // one for all bars

    let left = 0;
    const bands = parts.map(({ node, bars }, index) => {
      const width = widths[index];
      let x = left + (width - inners[index] * stretch) / 2;
      const drawn = bars.map((each) => {
        const drawing = bar(each, x, barWidth(each) * stretch, selected, choose);
        x += (barWidth(each) + gap(bars)) * stretch;
        return drawing;
      });
      const middle = left + width / 2;
      const label = nameOf(node, root);
      const chosen = selected === node.path || selected.startsWith(`${node.path}.`);
      const band = svg(
        "g",
        {
          class: `band${chosen ? " chosen" : ""}`,
          ...asButton(`band-${node.path}`, `${label}: ${node.layers}, output ${asShape(node.shape)}`, () =>
            choose(node.path),
          ),
        },
        svg("rect", {
          x: left,
          y: 34,
          width,
          height: FLOOR + 12,
          rx: 10,
          class: "ground",
          style: `--band: ${bandColour(node.path)}`,
        }),
        svg("text", { x: middle, y: 56, class: "name" }, label),
        svg("text", { x: middle, y: 72, class: "shape" }, node.kind === "stage" ? `× ${node.children.length}` : ""),
        drawn,
        svg("text", { x: middle, y: FLOOR + 22, class: "shape" }, node.shape.length > 1 ? `${node.shape[1]}²` : ""),
        svg(
          "text",
          { x: middle, y: FLOOR + 36, class: "shape" },
          node.shape.length > 1 ? `${node.shape[0]} ch` : `${node.shape[0]} logits`,
        ),
      );
      left += width + GAP;
      return band;
    });
    return svg(
      "svg",
      { viewBox: `0 32 ${WIDTH} 244`, role: "group", "aria-label": `${name} from the image to the classes` },
      bands,
    );
  }

  const sign = (drawing, words) =>
    html("span", {}, svg("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" }, drawing), words);
  const legend = () =>
    html(
      "p",
      { class: "legend signs" },
      sign(arc(2, 24, 12, 13, false), "identity"),
      sign(arc(2, 24, 12, 13, true), "projection or zeros"),
      sign(svg("path", { d: "M3,8 h20", class: "stride" }), "halves the map"),
      html("span", {}, "height: logarithm of the map's side; width: square root of its channels"),
    );

  // How parameters, multiply-adds and memory are shared among the stages.
  function shares(root) {
    return [
      ["parameters", "parameters"],
      ["multiplyAdds", "multiply-adds"],
      ["kept", "memory"],
    ].map(([key, words]) =>
      div(
        "share",
        span("what", words),
        html(
          "span",
          {
            class: "stack",
            role: "img",
            "aria-label": root.children
              .map((node) => `${nameOf(node, root)} ${Math.round((100 * node[key]) / root[key])}%`)
              .join(", "),
          },
          root.children.map((node) => {
            const percent = (100 * node[key]) / root[key];
            return (
              percent > 0 &&
              html("span", {
                style: `width: ${percent}%; background: ${bandColour(node.path)}`,
                title: `${nameOf(node, root)}: ${percent.toFixed(1)}%`,
              })
            );
          }),
        ),
      ),
    );
  }

  // The layers of a node from top to bottom; a block's shortcut is an arc on the right.
  function chain(node, choose, selected) {
    const parts = node.children.length ? node.children : [node];
    const shortcut = parts.find((each) => each.kind === "shortcut");
    const steps = parts.filter((each) => each !== shortcut);
    const [boxLeft, boxWidth, rowHeight, top] = [84, 190, 40, 34];
    const [centre, right] = [boxLeft + boxWidth / 2, boxLeft + boxWidth];
    const height = top + steps.length * rowHeight + 14;
    const elements = [];
    if (node.input) elements.push(svg("text", { x: centre, y: 14, class: "shape" }, `input ${asShape(node.input)}`));

    steps.forEach((step, index) => {
      const y = top + index * rowHeight;
      elements.push(svg("path", { d: `M${centre},${y - 12} v10 m-3,-4 l3,4 l3,-4`, class: "flow" }));
      const strided = /stride 2/.test(step.layers) || step.stride > 1;
      const title =
        step.kind === "stage"
          ? `${step.path} × ${step.children.length}`
          : step.children.length
            ? step.path
            : step.layers;
      const box =
        step.kind === "add"
          ? [
              svg("circle", { cx: centre, cy: y + 13, r: 12, class: "sum" }),
              svg("text", { x: centre, y: y + 18, class: "plus" }, "+"),
            ]
          : [
              svg("rect", {
                x: boxLeft,
                y,
                width: boxWidth,
                height: 27,
                rx: step.kind === "relu" ? 13 : 5,
                class: `box ${step.kind}`,
                style: `--band: ${bandColour(step.path)}`,
              }),
              svg("text", { x: centre, y: y + 18, class: strided ? "label strided" : "label" }, title),
            ];
      elements.push(
        svg(
          "g",
          {
            class: `step${step.path === selected ? " chosen" : ""}`,
            ...asButton(`step-${step.path}`, `${step.path}, ${step.layers}`, () => choose(step.path)),
          },
          box,
        ),
      );
      if (step.kind !== "relu" && step.kind !== "norm")
        elements.push(
          svg(
            "text",
            { x: boxLeft - 8, y: y + 18, class: "shape left" },
            step.shape.length > 1 ? `${step.shape[0]} × ${step.shape[1]}²` : step.shape[0],
          ),
        );
      if (step.kind === "block" && steps.length > 1)
        elements.push(svg("path", { d: `M${right},${y - 7} q26,20 0,40`, class: "shortcut" }));
    });

    if (shortcut) {
      const end = top + steps.findIndex((each) => each.kind === "add") * rowHeight + 13;
      const way = `M${centre},${top - 12} H${right + 12} q16,0 16,16 V${end - 16} q0,16 -16,16 H${centre + 14}`;
      const middle = (top + end) / 2;
      const label = shortcut.layers === "identity" ? "identity" : shortcut.children.length ? "projection" : "zeros";
      elements.push(
        svg("path", { d: way, class: "shortcut", "stroke-dasharray": label === "identity" ? null : "5 3" }),
      );
      elements.push(svg("path", { d: `M${centre + 20},${end - 4} l-6,4 l6,4`, class: "shortcut" }));
      elements.push(
        svg(
          "g",
          {
            class: `step${shortcut.path === selected ? " chosen" : ""}`,
            ...asButton(`step-${shortcut.path}`, `shortcut: ${shortcut.layers}`, () => choose(shortcut.path)),
          },
          svg("rect", { x: right + 17, y: middle - 48, width: 22, height: 96, rx: 11, class: "box way" }),
          svg(
            "text",
            {
              x: right + 28,
              y: middle,
              class: "label way",
              transform: `rotate(90 ${right + 28} ${middle})`,
              "dominant-baseline": "central",
            },
            label,
          ),
        ),
      );
    }
    return svg(
      "svg",
      {
        viewBox: `0 0 330 ${height}`,
        role: "group",
        "aria-label": `Layers of ${node.path || "the network"}`,
        class: "chain",
      },
      elements,
    );
  }

  return { network, shares, legend, chain, nameOf, bandColour };
})();
