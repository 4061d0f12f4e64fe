// A trained CIFAR-style ResNet (resnet_core/models/cifar.py) in plain JavaScript: reads its weights, computes every
// feature map and the logits, whole or with one of its parts changed. No DOM, so that a worker can run it, too.
"use strict";

const Network = (() => {
  const EPSILON = 1e-5; // of torch.nn.BatchNorm2d

  // What may be changed. `cut` and `skipped` hold names of blocks, such as "layer2.0".
  const UNCHANGED = { cut: [], skipped: [], noNorm: false, earlyRelu: false, lateStride: false };

  // A float16's sign, exponent and fraction, as a number.
  function fromHalf(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  // The tensors of a safetensors file, each {shape, data}: 8 bytes of length, a JSON header, then the values.
  function readTensors(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const length = Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    const tensors = {};
    for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
      if (dtype !== "F16") continue; // the metadata, and how many batches BatchNorm has seen
      const [begin, end] = data_offsets;
      const data = new Float32Array((end - begin) / 2);
      for (let index = 0; index < data.length; index++) {
        data[index] = fromHalf(view.getUint16(8 + length + begin + 2 * index, true));
      }
      tensors[name] = { shape, data };
    }
    return tensors;
  }

  const map = (channels, height, width) => ({
    shape: [channels, height, width],
    data: new Float32Array(channels * height * width),
  });

  // The map with a border of one zero pixel.
  function padded({ shape: [channels, height, width], data }) {
    const wide = width + 2;
    const result = new Float32Array(channels * (height + 2) * wide);
    for (let channel = 0; channel < channels; channel++) {
      for (let y = 0; y < height; y++) {
        const from = (channel * height + y) * width;
        result.set(data.subarray(from, from + width), (channel * (height + 2) + y + 1) * wide + 1);
      }
    }
    return result;
  }

  // 3x3 convolution, padding 1, without bias.
  function conv3x3(x, { shape: [outChannels, inChannels], data: weights }, stride) {
    const [, height, width] = x.shape;
    const [outHeight, outWidth] = [Math.ceil(height / stride), Math.ceil(width / stride)];
    const [wide, plane, outPlane] = [width + 2, (height + 2) * (width + 2), outHeight * outWidth];
    const source = padded(x);
    const result = map(outChannels, outHeight, outWidth);
    const sums = new Float64Array(outPlane);

    for (let o = 0; o < outChannels; o++) {
      sums.fill(0);
      for (let i = 0; i < inChannels; i++) {
        const w = (o * inChannels + i) * 9;
        const a = weights[w],
          b = weights[w + 1],
          c = weights[w + 2];
        const d = weights[w + 3],
          e = weights[w + 4],
          f = weights[w + 5];
        const g = weights[w + 6],
          h = weights[w + 7],
          k = weights[w + 8];
        let out = 0;
        for (let y = 0; y < outHeight; y++) {
          let p = i * plane + y * stride * wide;
          for (let column = 0; column < outWidth; column++, p += stride, out++) {
            const q = p + wide,
              r = q + wide;
            sums[out] +=
              a * source[p] +
              b * source[p + 1] +
              c * source[p + 2] +
              d * source[q] +
              e * source[q + 1] +
              f * source[q + 2] +
              g * source[r] +
              h * source[r + 1] +
              k * source[r + 2];
          }
        }
      }
      result.data.set(sums, o * outPlane);
    }
    return result;
  }

  // BatchNorm in evaluation: each channel is shifted and scaled by constants.
  function batchNorm({ shape, data }, tensors, name) {
    const of = (key) => tensors[`${name}.${key}`].data;
    const [weight, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(of);
    const result = map(...shape);
    const plane = shape[1] * shape[2];
    for (let channel = 0; channel < shape[0]; channel++) {
      const scale = weight[channel] / Math.sqrt(variance[channel] + EPSILON);
      const shift = bias[channel] - mean[channel] * scale;
      for (let index = channel * plane; index < (channel + 1) * plane; index++)
        result.data[index] = data[index] * scale + shift;
    }
    return result;
  }

  const relu = ({ shape, data }) => ({ shape, data: data.map((value) => (value > 0 ? value : 0)) });
  const add = (left, right) => ({
    shape: left.shape,
    data: left.data.map((value, index) => value + right.data[index]),
  });

  // Shortcut A: every second pixel, and zeros before and after as the new channels.
  function padShortcut({ shape: [channels, height, width], data }, outChannels) {
    const result = map(outChannels, Math.ceil(height / 2), Math.ceil(width / 2));
    const [, outHeight, outWidth] = result.shape;
    let out = Math.floor((outChannels - channels) / 2) * outHeight * outWidth;
    for (let channel = 0; channel < channels; channel++) {
      for (let y = 0; y < height; y += 2) {
        for (let x = 0; x < width; x += 2) result.data[out++] = data[(channel * height + y) * width + x];
      }
    }
    return result;
  }

  // One block's maps by name: conv1 bn1 relu1 conv2 branch shortcut sum output. What a change leaves out is missing.
  function runBlock(tensors, name, x, edits) {
    const first = tensors[`${name}.conv1.weight`];
    const changes = first.shape[0] !== first.shape[1];
    const shortcut = changes ? padShortcut(x, first.shape[0]) : x;
    if (edits.skipped.includes(name)) return { shortcut, output: relu(shortcut) };

    const norm = (map, key) => (edits.noNorm ? map : batchNorm(map, tensors, `${name}.${key}`));
    const [stride1, stride2] = !changes ? [1, 1] : edits.lateStride ? [1, 2] : [2, 1];
    const maps = {};
    maps.conv1 = conv3x3(x, first, stride1);
    maps.bn1 = norm(maps.conv1, "bn1");
    maps.relu1 = relu(maps.bn1);
    maps.conv2 = conv3x3(maps.relu1, tensors[`${name}.conv2.weight`], stride2);
    maps.branch = norm(maps.conv2, "bn2");
    if (edits.earlyRelu) maps.branch = relu(maps.branch);
    if (edits.cut.includes(name)) return { ...maps, sum: maps.branch, output: relu(maps.branch) };
    maps.shortcut = shortcut;
    maps.sum = add(maps.branch, shortcut);
    return { ...maps, output: edits.earlyRelu ? maps.sum : relu(maps.sum) };
  }

  const blockNames = (tensors) =>
    Object.keys(tensors)
      .filter((name) => name.endsWith(".conv1.weight"))
      .map((name) => name.replace(".conv1.weight", ""))
      .sort();

  // From an image {shape, data}, normalised as in training, to all maps, the pooled features and the logits.
  function run(tensors, image, edits = UNCHANGED) {
    const stem = { conv1: conv3x3(image, tensors["conv1.weight"], 1) };
    stem.bn1 = edits.noNorm ? stem.conv1 : batchNorm(stem.conv1, tensors, "bn1");
    stem.output = relu(stem.bn1);

    const blocks = {};
    let x = stem.output;
    for (const name of blockNames(tensors)) {
      blocks[name] = runBlock(tensors, name, x, edits);
      x = blocks[name].output;
    }

    const [channels, height, width] = x.shape;
    const plane = height * width;
    const pooled = Float64Array.from(
      { length: channels },
      (_, channel) =>
        x.data.subarray(channel * plane, (channel + 1) * plane).reduce((sum, value) => sum + value, 0) / plane,
    );
    const { data: weights } = tensors["fc.weight"];
    const logits = Array.from(tensors["fc.bias"].data, (bias, label) =>
      pooled.reduce((sum, value, channel) => sum + value * weights[label * channels + channel], bias),
    );
    return { image, stem, blocks, last: x, pooled, logits };
  }

  // Bytes 0..255 -> the image that the network was trained on.
  function normalised(bytes, shape, mean, deviation) {
    return { shape, data: Float32Array.from(bytes, (value) => (value / 255 - mean) / deviation) };
  }

  const best = (logits) => logits.indexOf(Math.max(...logits));

  function softmax(logits) {
    const largest = Math.max(...logits);
    const powers = logits.map((value) => Math.exp(value - largest));
    const sum = powers.reduce((result, value) => result + value, 0);
    return powers.map((value) => value / sum);
  }

  return { UNCHANGED, readTensors, blockNames, run, normalised, best, softmax };
})();
