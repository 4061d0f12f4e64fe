// The live tab: an image, what the network says of it, what may be changed, and every map on the way.
"use strict";

const LiveView = (() => {
  const { names, tensors, asImage, SWITCHES, SKIPPED } = LiveNetwork;
  const SIZE = LIVE.side;
  const TRAINED = Network.UNCHANGED;
  let state;
  let own = null; // the reader's image, which no link holds
  let latest = null; // what the network made of the image that is shown
  let onChange = () => {};

  // ---- the state, and the link that holds it

  const known = (text, among) => (text ?? "").split(",").filter((word) => among.includes(word));

  function read(parameters) {
    const image = Number(parameters.get("image") ?? 1) - 1;
    state = {
      image: image in Inputs.shipped ? image : 0,
      edits: {
        cut: parameters.get("cut") === "all" ? names : known(parameters.get("cut"), names),
        skipped: known(parameters.get("skip"), names),
        noNorm: parameters.get("norm") === "off",
        earlyRelu: parameters.get("relu") === "early",
        lateStride: parameters.get("stride") === "second",
      },
      block: known(parameters.get("at"), ["stem", ...names])[0] ?? names[4],
      map: parameters.get("map") ?? "output",
      channel: Number(parameters.get("channel") ?? 1) - 1,
      label: parameters.has("class") ? LIVE.classes.indexOf(parameters.get("class")) : -1,
    };
    if (parameters.has("image")) own = null;
    if (!own) Inputs.open("images");
    replace(byId("gallery"), Inputs.gallery(state.image));
  }

  function write(parameters) {
    const { image, edits, block, map, channel, label } = state;
    if (!own) parameters.set("image", image + 1);
    if (edits.cut.length) parameters.set("cut", edits.cut.length === names.length ? "all" : edits.cut.join(","));
    if (edits.skipped.length) parameters.set("skip", edits.skipped.join(","));
    if (edits.noNorm) parameters.set("norm", "off");
    if (edits.earlyRelu) parameters.set("relu", "early");
    if (edits.lateStride) parameters.set("stride", "second");
    parameters.set("at", block);
    if (map !== "output") parameters.set("map", map);
    if (channel) parameters.set("channel", channel + 1);
    if (label >= 0) parameters.set("class", LIVE.classes[label]);
  }

  function change(update) {
    update();
    render();
    onChange();
  }

  const isOn = (on, edits = state.edits) =>
    Object.entries(on).every(([key, value]) => JSON.stringify(edits[key]) === JSON.stringify(value));
  const isTrained = (edits) => isOn(TRAINED, edits);
  const changeEdits = (edits) =>
    change(() => {
      state.edits = { ...state.edits, ...edits };
    });

  Inputs.onImage = (image) =>
    change(() => {
      own = image.index === null ? image : null;
      if (image.index !== null) state.image = image.index;
    });
  Measure.onProgress = () => {
    renderAccuracy();
  };

  // ---- what the network says

  function answer(pixels, trained, edited, milliseconds) {
    const { label, name } = own ?? Inputs.shipped[state.image];
    const shares = Network.softmax(edited.logits);
    const before = Network.softmax(trained.logits);
    const found = Network.best(edited.logits);
    const verdict = label === null ? "" : found === label ? "right" : `wrong: it is labelled ${LIVE.classes[label]}`;
    const rows = LIVE.classes.map((words, index) =>
      html(
        "button",
        {
          type: "button",
          class: `class${index === found ? " found" : ""}`,
          "data-key": `class-${index}`,
          "data-logit": edited.logits[index],
          "aria-pressed": String(index === shownLabel(edited)),
          "aria-label": `${words}: ${(100 * shares[index]).toFixed(1)}%, logit ${edited.logits[index].toFixed(2)}. Show its evidence.`,
          onclick: () =>
            change(() => {
              state.label = index;
            }),
        },
        span("words", words, index === label && span("truth", "label")),
        span(
          "track",
          html("span", { class: "amount", style: `width: ${100 * shares[index]}%` }),
          !isTrained(state.edits) &&
            html("span", { class: "before", style: `left: ${100 * before[index]}%`, title: "as trained" }),
        ),
        span("number", `${(100 * shares[index]).toFixed(1)}%`),
        span("number logit", edited.logits[index].toFixed(2)),
        span("number logit", isTrained(state.edits) ? "" : trained.logits[index].toFixed(2)),
      ),
    );
    byId("spoken").textContent = `${LIVE.classes[found]}, ${(100 * shares[found]).toFixed(0)}%. ${verdict}`;
    const heads = ["class", "share", "", "logit", isTrained(state.edits) ? "" : "trained"];
    return [
      html("h2", { class: "found" }, LIVE.classes[found], span(`verdict ${found === label ? "good" : "bad"}`, verdict)),
      div(
        "seen",
        Maps.grey(
          pixels,
          SIZE,
          own ? `${name}, as the network sees it` : `Test image ${state.image + 1}, ${LIVE.classes[label]}`,
          { class: "map preview" },
        ),
        div(
          `classes${isTrained(state.edits) ? " trained" : ""}`,
          html(
            "div",
            { class: "class heads", "aria-hidden": "true" },
            heads.map((words, index) => html("span", { class: index > 1 ? "number" : null }, words)),
          ),
          rows,
        ),
      ),
      html(
        "p",
        { class: "hint", id: "milliseconds", "data-milliseconds": milliseconds },
        `${own ? `${name}. ` : ""}Computed here in ${milliseconds.toFixed(0)} ms. ${isTrained(state.edits) ? "" : "The upright lines mark the shares as trained."}`,
      ),
    ];
  }

  const shownLabel = (edited) => (state.label >= 0 ? state.label : Network.best(edited.logits));

  // ---- the switches

  function switches() {
    const { edits } = state;
    const boxes = Object.entries(SWITCHES).map(([key, { words, hint, on }]) => {
      const off = Object.fromEntries(Object.keys(on).map((name) => [name, TRAINED[name]]));
      return html(
        "label",
        { class: "switch" },
        html("input", {
          type: "checkbox",
          id: `switch-${key}`,
          "data-key": `switch-${key}`,
          checked: isOn(on),
          onchange: ({ target }) => changeEdits(target.checked ? on : off),
        }),
        html("span", {}, words, html("small", {}, hint)),
      );
    });
    const skip = html(
      "label",
      { class: "switch", for: "switch-skip" },
      html("span", {}, "Skip a block", html("small", {}, "Its shortcut takes its place.")),
      html(
        "select",
        {
          id: "switch-skip",
          "data-key": "switch-skip",
          onchange: ({ target }) => changeEdits({ skipped: target.value ? [target.value] : [] }),
        },
        html("option", { value: "" }, "none"),
        names.map((name) => html("option", { value: name, selected: edits.skipped.includes(name) }, name)),
      ),
    );
    return [
      boxes,
      skip,
      html(
        "button",
        { type: "button", "data-key": "reset", disabled: isTrained(edits), onclick: () => changeEdits(TRAINED) },
        "As trained",
      ),
    ];
  }

  // ---- the accuracy on the shipped images

  function wordsOf(edits) {
    const words = Object.values(SWITCHES)
      .filter(({ on }) => isOn(on, edits))
      .map((each) => each.words);
    if (edits.cut.length && edits.cut.length < names.length) words.push(`${edits.cut.join(", ")} cut`);
    if (edits.skipped.length) words.push(`${edits.skipped.join(", ")} skipped`);
    return words.join(" + ") || "As trained";
  }

  const everyEdit = () =>
    [...Object.values(SWITCHES).map(({ on }) => on), ...names.map((name) => ({ skipped: [name] }))].map((on) => ({
      ...TRAINED,
      ...on,
    }));

  function renderAccuracy() {
    const shown = [TRAINED, state.edits, ...everyEdit()];
    const seen = new Set();
    const rows = shown.flatMap((edits) => {
      const words = wordsOf(edits);
      const labels = Measure.of(edits);
      if (seen.has(words) || !labels) return [];
      seen.add(words);
      const right = labels.filter((label, index) => label === LIVE.labels[index]).length;
      const isDone = labels.length === LIVE.labels.length;
      return html(
        "div",
        {
          class: `measured${words === wordsOf(state.edits) ? " chosen" : ""}`,
          "data-edits": words,
          "data-right": isDone ? right : null,
        },
        span("words", words),
        span("track", html("span", { class: "amount", style: `width: ${right}%` })),
        span("number", isDone ? `${right} of ${labels.length}` : `${labels.length} seen`),
      );
    });
    replace(byId("accuracy"), rows);

    const labels = Measure.of(state.edits) ?? [];
    for (const picture of byId("gallery").children) {
      const index = Number(picture.dataset.index);
      const mark = picture.querySelector(".verdict");
      const isRight = labels[index] === LIVE.labels[index];
      mark.className = `verdict ${index in labels ? (isRight ? "good" : "bad") : ""}`;
      mark.textContent = index in labels ? (isRight ? "✓" : "✗") : "";
      picture.title =
        index in labels
          ? `${LIVE.classes[LIVE.labels[index]]}, named ${LIVE.classes[labels[index]]}`
          : LIVE.classes[LIVE.labels[index]];
    }
  }

  byId("measure").addEventListener("click", () => everyEdit().forEach((edits) => Measure.measure(edits, false)));

  byId("channel").addEventListener("input", ({ target }) =>
    change(() => {
      state.channel = Number(target.value) - 1;
    }),
  );

  // ---- all of it

  // The network runs again when the image or a change of it is new, not when a reader looks at another map.
  function run(bytes) {
    if (latest?.bytes === bytes && latest.edits === state.edits) return latest;
    const image = asImage(bytes);
    const trained = Network.run(tensors, image);
    const start = performance.now();
    const edited = Network.run(tensors, image, state.edits);
    latest = { bytes, edits: state.edits, trained, edited, milliseconds: performance.now() - start };
    return latest;
  }

  function render() {
    const { bytes } = own ?? Inputs.shipped[state.image];
    const { trained, edited, milliseconds } = run(bytes);
    const colours = Maps.palette();

    replace(byId("answer"), answer(bytes, trained, edited, milliseconds));
    replace(byId("switches"), switches());
    const lessons = Object.values(SWITCHES)
      .filter(({ on }) => isOn(on))
      .map(({ lesson }) => lesson);
    replace(
      byId("lessons"),
      [...lessons, ...(state.edits.skipped.length ? [SKIPPED] : [])].map((words) => html("p", {}, words)),
    );
    const shown = { state, edited, colours, change, changeEdits };
    replace(byId("strip"), Blocks.strip(shown));
    replace(byId("block"), Blocks.details(shown));
    replace(byId("evidence"), Evidence.show(bytes, edited, shownLabel(edited), colours));
    Measure.measure(TRAINED);
    Measure.measure(state.edits);
    renderAccuracy();
  }

  return {
    read,
    write,
    render,
    set onChange(listener) {
      onChange = listener;
    },
  };
})();
