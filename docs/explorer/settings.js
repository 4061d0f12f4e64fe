// The form of a model's settings, their defaults and limits, and how a link holds them.
"use strict";

const Settings = (() => {
  const DEFAULTS = {
    model: "resnet50",
    size: 224,
    classes: 1000,
    channels: 3,
    groups: 1,
    width: 64,
    v1: false,
    small: false,
    shortcut: "A",
  };
  const LIMITS = { size: [1, 4096], classes: [1, 100000], channels: [1, 1000], groups: [1, 1024], width: [1, 4096] };
  const CIFAR = { size: 32, classes: 10 };

  // The defaults of a model, of which CIFAR's networks have others.
  const defaultsOf = (model) => ({
    ...DEFAULTS,
    model,
    ...(MODELS[model].family === "cifar" ? CIFAR : {}),
    ...MODELS[model].fixed,
  });

  const isBasic = (model) => MODELS[model].block === "BasicBlock";
  const isFixed = (model) => isBasic(model) || Object.keys(MODELS[model].fixed).length > 0;

  // The settings that a link holds; what it may not hold stays as usual.
  function sideFrom(parameters, prefix, fallback) {
    const wanted = parameters.get(`${prefix}model`) ?? fallback;
    const side = defaultsOf(Object.hasOwn(MODELS, wanted) ? wanted : DEFAULTS.model);
    for (const [key, [least, most]] of Object.entries(LIMITS)) {
      const value = Number(parameters.get(prefix + key));
      const isOpen = !(isFixed(side.model) && (key === "groups" || key === "width"));
      if (isOpen && Number.isInteger(value) && value >= least && value <= most) side[key] = value;
    }
    side.v1 = parameters.get(`${prefix}v1`) === "1" && !isBasic(side.model);
    side.small = parameters.get(`${prefix}small`) === "1";
    if (parameters.get(`${prefix}shortcut`) === "B") side.shortcut = "B";
    return side;
  }

  function labelled(id, words, control) {
    return html("label", { for: id }, words, control);
  }

  function numberField(id, words, key, side, disabled, set) {
    const [least, most] = LIMITS[key];
    const onchange = ({ target }) =>
      set(key, Math.min(most, Math.max(least, Math.round(Number(target.value)) || least)));
    const range = { type: "number", min: least, max: most, step: 1, value: side[key] };
    return labelled(id, words, html("input", { id, "data-key": id, ...range, disabled, onchange }));
  }

  // `options` maps values, as they are in the settings, to words.
  function choice(id, words, options, value, disabled, set) {
    const values = [...options.keys()];
    const onchange = ({ target }) => set(values[target.selectedIndex]);
    const entries = values.map((each) => html("option", { value: each, selected: each === value }, options.get(each)));
    return labelled(id, words, html("select", { id, "data-key": id, disabled, onchange }, entries));
  }

  // The form of one model. `take` gets the settings that a reader chose.
  function form(letter, side, isCompared, take) {
    const row = MODELS[side.model];
    const basic = isBasic(side.model);
    const fixed = isFixed(side.model);
    const set = (key, value) => take({ ...side, [key]: value });
    const number = (key, words, disabled = false) => numberField(`${letter}-${key}`, words, key, side, disabled, set);
    const choose = (key, words, pairs, disabled = false) =>
      choice(`${letter}-${key}`, words, new Map(pairs), side[key], disabled, (value) => set(key, value));

    const names = new Map(Object.keys(MODELS).map((name) => [name, name]));
    const stems = [
      [false, "7x7 and max pool"],
      [true, "small images: 3x3"],
    ];
    const strides = [
      [false, basic ? "the first 3x3" : "the 3x3 (v1.5)"],
      [true, "the first 1x1 (v1)"],
    ];
    const fields = [
      choice(`${letter}-model`, "Model", names, side.model, false, (model) => take(withModel(side, model))),
      number("size", "Image size, px"),
      number("classes", "Classes"),
      number("channels", "Image channels"),
      number("groups", "Groups", fixed),
      number("width", "Width per group", fixed),
      ...(row.family === "cifar"
        ? [
            choose("shortcut", "Shortcut", [
              ["A", "A: zeros"],
              ["B", "B: projection"],
            ]),
          ]
        : [choose("small", "Stem", stems), choose("v1", "Stride sits on", strides, basic)]),
    ];
    return html(
      "form",
      { class: "settings", "aria-label": `Model ${letter.toUpperCase()}`, onsubmit: (event) => event.preventDefault() },
      isCompared && html("span", { class: `badge ${letter}`, "aria-hidden": "true" }, letter.toUpperCase()),
      fields,
      html("p", { class: "hint" }, whyFixed(side.model)),
    );
  }

  function whyFixed(model) {
    if (isBasic(model)) return "A BasicBlock has neither groups nor another width, and no 1x1.";
    if (isFixed(model))
      return `${model} is ResNet with these groups and this width; choose resnet50 or resnet101 to change them.`;
    return "";
  }

  // The settings of another model. The image stays, unless the model is of another family.
  function withModel(side, model) {
    if (MODELS[side.model].family !== MODELS[model].family) return defaultsOf(model);
    const { size, classes, channels, small, shortcut } = side;
    const v1 = side.v1 && !isBasic(model);
    return { ...defaultsOf(model), size, classes, channels, small, shortcut, v1 };
  }

  return { DEFAULTS, defaultsOf, sideFrom, withModel, form };
})();
