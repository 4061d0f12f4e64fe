// The network block by block, and the maps inside the chosen block.
"use strict";

const Blocks = (() => {
  const { names } = LiveNetwork;
  const STEM_MAPS = { conv1: "convolution", bn1: "after BatchNorm", output: "after ReLU" };
  const BLOCK_MAPS = {
    conv1: "first convolution",
    bn1: "after its BatchNorm",
    relu1: "after its ReLU",
    conv2: "second convolution",
    branch: "branch, after its BatchNorm",
    shortcut: "shortcut",
    sum: "branch + shortcut",
    output: "output, after ReLU",
  };

  // ---- the network, block by block

  function strip({ state, edited, colours, change }) {
    const tile = (name, map, more) =>
      html(
        "button",
        {
          type: "button",
          class: `tile${more}${state.block === name ? " chosen" : ""}`,
          "data-key": `tile-${name}`,
          "aria-pressed": String(state.block === name),
          "aria-label": `${name}, output ${asShape(map.shape)}${more}`,
          style: `--band: ${Diagrams.bandColour(name)}`,
          onclick: () =>
            change(() => {
              state.block = name;
              state.map = "output";
              state.channel = 0;
            }),
        },
        name !== "stem" &&
          svg(
            "svg",
            { viewBox: "0 0 72 18", class: "over", "aria-hidden": "true" },
            svg("path", { d: "M8,17 C8,1 64,1 64,17", class: "shortcut" }),
          ),
        Maps.channel(Maps.mean(map), 0, "", colours),
        span("name", name),
        span("shape", `${map.shape[0]} × ${map.shape[1]}²`),
      );
    const stages = [...new Set(names.map((name) => name.split(".")[0]))];
    return [
      html(
        "div",
        { class: "stage", style: "--band: var(--ends)" },
        span("title", "stem"),
        div("tiles", tile("stem", edited.stem.output, "")),
      ),
      stages.map((stage) =>
        html(
          "div",
          { class: "stage", style: `--band: ${Diagrams.bandColour(stage)}` },
          span("title", stage),
          div(
            "tiles",
            names
              .filter((name) => name.startsWith(`${stage}.`))
              .map((name) =>
                tile(
                  name,
                  edited.blocks[name].output,
                  state.edits.skipped.includes(name) ? " skipped" : state.edits.cut.includes(name) ? " cut" : "",
                ),
              ),
          ),
        ),
      ),
    ];
  }

  // ---- one block

  function toggled(list, name) {
    return names.filter((each) => (each === name ? !list.includes(each) : list.includes(each)));
  }

  function details({ state, edited, colours, change, changeEdits }) {
    const isStem = state.block === "stem";
    const maps = isStem ? edited.stem : edited.blocks[state.block];
    const labels = isStem ? STEM_MAPS : BLOCK_MAPS;
    if (!Object.hasOwn(maps, state.map)) state.map = "output";
    const map = maps[state.map];
    state.channel = Math.min(Math.max(0, state.channel), map.shape[0] - 1);
    const { channel } = state;
    const slider = byId("channel");
    slider.max = map.shape[0];
    slider.value = channel + 1;
    byId("channel-words").textContent = `Channel ${channel + 1} of ${map.shape[0]}`;

    const choices = Object.entries(labels).map(([key, words]) =>
      html(
        "label",
        { class: `choice${key in maps ? "" : " off"}` },
        html("input", {
          type: "radio",
          name: "map",
          value: key,
          "data-key": `map-${key}`,
          checked: key === state.map,
          disabled: !(key in maps),
          onchange: () =>
            change(() => {
              state.map = key;
            }),
        }),
        words,
      ),
    );
    const toggle = (key, words) =>
      html(
        "label",
        { class: "choice" },
        html("input", {
          type: "checkbox",
          id: `block-${key}`,
          "data-key": `block-${key}`,
          checked: state.edits[key].includes(state.block),
          onchange: () => changeEdits({ [key]: toggled(state.edits[key], state.block) }),
        }),
        words,
      );

    return [
      html("h2", {}, state.block, html("small", {}, `${labels[state.map]}: ${asShape(map.shape)}`)),
      !isStem && div("tools", toggle("cut", "cut this shortcut"), toggle("skipped", "skip this block")),
      !isStem && sum(maps, channel, colours, state.edits.earlyRelu),
      html("fieldset", { class: "choices" }, html("legend", {}, "Map"), choices),
      Maps.grid(map, channel, `All ${map.shape[0]} channels of ${labels[state.map]}`, colours, (index) =>
        change(() => {
          state.channel = index;
        }),
      ),
    ];
  }

  // Branch + shortcut = sum, then ReLU, all of one channel on one scale.
  function sum(maps, channel, colours, early) {
    const scale = Maps.scaleOf(
      ...["branch", "shortcut", "sum", "output"].filter((key) => key in maps).map((key) => maps[key]),
    );
    const part = (key, words) =>
      html(
        "figure",
        { class: "term" },
        key in maps
          ? Maps.channel(maps[key], channel, `${words}, channel ${channel + 1}`, colours, scale)
          : span("map none", "left out"),
        html("figcaption", {}, words),
      );
    const sign = (words) => html("span", { class: "sign", "aria-hidden": "true" }, words);
    return html(
      "div",
      { class: "sum-of", role: "group", "aria-label": "Branch and shortcut added up" },
      part("branch", early ? "branch, after ReLU" : "branch"),
      sign("+"),
      part("shortcut", "shortcut"),
      sign("="),
      part("sum", "sum"),
      sign("→"),
      part("output", early ? "output" : "after ReLU"),
    );
  }

  return { strip, details };
})();
