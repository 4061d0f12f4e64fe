// Shapes, parameters, multiply-adds, receptive fields and memory of each layer, computed from a model's few settings.
// No DOM: tests/site compares every number with Python's.
"use strict";

const Architecture = (() => {
  const FLOAT_BYTES = 4;
  const INDEX_BYTES = 8; // max-pool remembers which pixel was the largest, as an int64

  // The paper's names of the stages, in networks that have all four.
  const PAPER_NAMES = { layer1: "conv2_x", layer2: "conv3_x", layer3: "conv4_x", layer4: "conv5_x" };

  // What flows through the network: the map's shape, and how one of its pixels looks back at the image.
  // `field` is null once pooling has seen all pixels; `step` is the distance between two neighbours' fields.
  const flow = (shape, field, step) => ({ shape, field, step });

  // How a number comes about: what it counts, the factors in words, the number.
  const times = (what, factors, result) => [
    what,
    factors.map((factor) => factor.toLocaleString("en-US")).join(" × "),
    result,
  ];
  const seen = (before, kernel, field) => [
    "pixels seen along one side",
    `${before.field} + (${kernel} − 1) × ${before.step}`,
    field,
  ];

  const product = (numbers) => numbers.reduce((result, number) => result * number, 1);
  const total = (nodes, key) => nodes.reduce((sum, node) => sum + node[key], 0);
  const outputSide = (side, kernel, stride) => Math.floor((side + 2 * Math.floor(kernel / 2) - kernel) / stride) + 1;

  // A layer whose output is described by `after`: a flow, or the node before it where nothing changes.
  function leaf(
    path,
    kind,
    layers,
    { shape, field, step },
    { parameters = 0, multiplyAdds = 0, kept = 0, formula = [], source = [] },
  ) {
    return { path, kind, layers, shape, field, step, parameters, multiplyAdds, kept, formula, source, children: [] };
  }

  // A node whose numbers are the sums of its children's. Its output is that of the last child.
  function group(path, kind, layers, children, source = [], more = {}) {
    const { shape, field, step } = children[children.length - 1];
    const sums = ["parameters", "multiplyAdds", "kept"].map((key) => [key, total(children, key)]);
    return {
      path,
      kind,
      layers,
      shape,
      field,
      step,
      ...Object.fromEntries(sums),
      formula: [],
      source,
      children,
      ...more,
    };
  }

  function conv(path, before, outChannels, kernel, stride, groups, source) {
    const [inChannels, height, width] = before.shape;
    const shape = [outChannels, outputSide(height, kernel, stride), outputSide(width, kernel, stride)];
    const field = before.field + (kernel - 1) * before.step;
    const weights = [kernel, kernel, inChannels / groups, outChannels];
    const parameters = product(weights);
    const multiplyAdds = parameters * shape[1] * shape[2];
    const layers = `${kernel}x${kernel}, ${outChannels}${groups > 1 ? `, C=${groups}` : ""}${stride > 1 ? `, stride ${stride}` : ""}`;
    return leaf(path, "conv", layers, flow(shape, field, before.step * stride), {
      parameters,
      multiplyAdds,
      kept: product(shape) * FLOAT_BYTES,
      formula: [
        times("weights", weights, parameters),
        times("multiply-adds", [parameters, shape[1], shape[2]], multiplyAdds),
        seen(before, kernel, field),
      ],
      source,
    });
  }

  function norm(path, before, source) {
    const channels = before.shape[0];
    return leaf(path, "norm", "BatchNorm", before, {
      parameters: 2 * channels,
      kept: 2 * channels * FLOAT_BYTES, // the batch's mean and deviation
      formula: [times("scales and shifts", [2, channels], 2 * channels)],
      source,
    });
  }

  const relu = (path, before, source) =>
    leaf(path, "relu", "ReLU", before, { kept: product(before.shape) * FLOAT_BYTES, source });

  function maxPool(path, before, source) {
    const [channels, height, width] = before.shape;
    const shape = [channels, outputSide(height, 3, 2), outputSide(width, 3, 2)];
    const kept = product(shape) * (FLOAT_BYTES + INDEX_BYTES);
    const field = before.field + 2 * before.step;
    return leaf(path, "pool", "3x3 max pool, stride 2", flow(shape, field, before.step * 2), {
      kept,
      formula: [seen(before, 3, field)],
      source,
    });
  }

  function projection(path, before, outChannels, stride) {
    const source = [["make_shortcut", "conv1x1"]];
    const reduced = conv(`${path}.0`, before, outChannels, 1, stride, 1, source);
    return group(
      path,
      "shortcut",
      `projection: ${reduced.layers}`,
      [reduced, norm(`${path}.1`, reduced, source)],
      source,
    );
  }

  function padding(path, before, outChannels) {
    const [channels, height, width] = before.shape;
    const shape = [outChannels, Math.ceil(height / 2), Math.ceil(width / 2)];
    const layers = `every second pixel, ${outChannels - channels} channels of zeros`;
    return leaf(path, "shortcut", layers, flow(shape, before.field, before.step * 2), {
      source: [["PadShortcut", "F.pad"]],
    });
  }

  // Identity where the shapes agree, as in resnet.py and cifar.py.
  function shortcut(path, before, outChannels, stride, kind) {
    if (stride === 1 && before.shape[0] === outChannels) {
      return leaf(path, "shortcut", "identity", before, { source: [["make_shortcut", "nn.Identity"]] });
    }
    return kind === "A" ? padding(path, before, outChannels) : projection(path, before, outChannels, stride);
  }

  // The block's convolutions as [kernel, channels, stride, groups].
  function branchOf(config, planes, stride) {
    if (config.block === "BasicBlock")
      return [
        [3, planes, stride, 1],
        [3, planes, 1, 1],
      ];
    const width = Math.trunc(planes * (config.width / 64)) * config.groups;
    const [first, second] = config.v1 ? [stride, 1] : [1, stride];
    return [
      [1, width, first, 1],
      [3, width, second, config.groups],
      [1, planes * 4, 1, 1],
    ];
  }

  function block(path, before, config, planes, stride) {
    const of = (name) => [[config.block, name]];
    const branch = branchOf(config, planes, stride);
    const outChannels = branch[branch.length - 1][1];
    const children = [];
    let x = before;
    branch.forEach(([kernel, channels, convStride, groups], index) => {
      const number = index + 1;
      x = conv(`${path}.conv${number}`, x, channels, kernel, convStride, groups, of(`self.conv${number}`));
      children.push(x);
      x = norm(`${path}.bn${number}`, x, of(`self.bn${number}`));
      children.push(x);
      if (number < branch.length) {
        x = relu(`${path}.relu_${number}`, x, of("self.relu"));
        children.push(x);
      }
    });
    children.push(shortcut(`${path}.downsample`, before, outChannels, stride, config.shortcut));
    children.push(leaf(`${path}.add`, "add", "branch + shortcut", x, { source: of("out +=") }));
    children.push(relu(`${path}.relu`, x, of("self.relu(out)")));
    const layers = branch.map(
      ([kernel, channels, , groups]) => `${kernel}x${kernel}, ${channels}${groups > 1 ? `, C=${groups}` : ""}`,
    );
    return group(path, "block", layers.join(" | "), children, [[config.block, "def forward"]], {
      input: before.shape,
      stride,
    });
  }

  function stage(path, before, config, planes, count, stride) {
    const children = [];
    let x = before;
    for (let index = 0; index < count; index++) {
      x = block(`${path}.${index}`, x, config, planes, index ? 1 : stride);
      children.push(x);
    }
    const maker = config.family === "cifar" ? ["make_halving_stage", "def"] : ["make_stage", "def"];
    return group(path, "stage", `${count} x ${config.block}: ${children[0].layers}`, children, [
      [config.network, `self.${path}`],
      maker,
    ]);
  }

  function stem(before, config) {
    const small = config.family === "cifar" || config.small;
    const owner = config.small && config.family !== "cifar" ? "Backbone" : config.network;
    const of = (name) => [[config.network, `self.${name}`]];
    const first = conv("conv1", before, config.stemChannels, small ? 3 : 7, small ? 1 : 2, 1, [[owner, "self.conv1"]]);
    const children = [first, norm("bn1", first, of("bn1")), relu("relu", first, of("relu"))];
    if (!small) children.push(maxPool("maxpool", first, of("maxpool")));
    return group(
      "stem",
      "stem",
      children
        .filter((each) => each.kind !== "norm" && each.kind !== "relu")
        .map((each) => each.layers)
        .join(" | "),
      children,
      first.source,
    );
  }

  function head(before, config) {
    const of = (name) => [[config.network, `self.${name}`]];
    const [channels] = before.shape;
    const pooled = leaf("avgpool", "pool", "global average pool", flow([channels], null, null), {
      kept: channels * FLOAT_BYTES,
      source: of("avgpool"),
    });
    const weights = channels * config.classes;
    const linear = leaf("fc", "linear", `linear, ${config.classes} classes`, flow([config.classes], null, null), {
      parameters: weights + config.classes,
      multiplyAdds: weights,
      formula: [
        times("weights and biases", [channels + 1, config.classes], weights + config.classes),
        times("multiply-adds", [channels, config.classes], weights),
      ],
      source: of("fc"),
    });
    return group("head", "head", `${pooled.layers} | ${linear.layers}`, [pooled, linear], linear.source);
  }

  // The whole network as a tree: input, stem, stages, head. `settings` are those of the page's form; `row` is the
  // model's row of the table that build.py writes.
  function describe(settings, row) {
    const config = { ...settings, ...row, ...row.fixed };
    if (row.block === "BasicBlock") Object.assign(config, { groups: 1, width: 64, v1: false });
    if (row.family !== "cifar") config.shortcut = "B";
    const image = flow([config.channels, config.size, config.size], 1, 1);
    const input = leaf("input", "input", "image", image, { kept: product(image.shape) * FLOAT_BYTES });

    const nodes = [input, stem(image, config)];
    row.layers.forEach((count, index) => {
      const planes = config.stemChannels * 2 ** index;
      nodes.push(stage(`layer${index + 1}`, nodes[nodes.length - 1], config, planes, count, index ? 2 : 1));
    });
    nodes.push(head(nodes[nodes.length - 1], config));
    return group("", "network", row.layers.join(", "), nodes, [], { config });
  }

  // A stage whose blocks from the third on, which all equal the second, are one node.
  function withRepeatsFolded(node) {
    if (node.kind !== "stage" || node.children.length < 4) return node;
    const [first, second, ...others] = node.children;
    const words = `${others.length} blocks like ${second.path.split(".").pop()}`;
    return { ...node, children: [first, second, group(`${node.path}.more`, "repeats", words, others)] };
  }

  // All nodes by path, in the order in which data flows.
  function flatten(node, found = new Map()) {
    found.set(node.path, node);
    node.children.forEach((child) => flatten(child, found));
    return found;
  }

  return { describe, flatten, withRepeatsFolded, PAPER_NAMES };
})();
