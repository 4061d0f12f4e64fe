// Feature maps as pictures: zero has the panel's colour, positive values are blue, negative ones orange.
"use strict";

const Maps = (() => {
  // A colour of style.css as [red, green, blue], in light or dark as shown.
  function colour(variable) {
    const probe = document.body.appendChild(html("span", { style: `color: var(${variable})` }));
    const channels = getComputedStyle(probe)
      .color.match(/[\d.]+/g)
      .slice(0, 3)
      .map(Number);
    probe.remove();
    return channels;
  }

  const palette = () => ({ zero: colour("--zero"), plus: colour("--plus"), minus: colour("--minus") });

  // The size that few values exceed: a single bright pixel should not darken the others.
  function scaleOf(...maps) {
    const sizes = maps.flatMap((map) => Array.from(map.data, Math.abs)).sort((left, right) => left - right);
    return sizes[Math.floor(sizes.length * 0.995)] || sizes[sizes.length - 1] || 1;
  }

  function paint(image, offset, values, width, colours, scale) {
    values.forEach((value, index) => {
      const strength = Math.min(1, Math.abs(value) / scale);
      const end = value < 0 ? colours.minus : colours.plus;
      const pixel = 4 * (offset + Math.floor(index / width) * image.width + (index % width));
      for (let channel = 0; channel < 3; channel++)
        image.data[pixel + channel] = colours.zero[channel] + (end[channel] - colours.zero[channel]) * strength;
      image.data[pixel + 3] = 255;
    });
  }

  // A picture without a label repeats what stands beside it, and is hidden from screen readers.
  function canvas(width, height, label, more = {}) {
    const named = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
    return html("canvas", { width, height, ...named, ...more });
  }

  // One channel of a map.
  function channel(map, index, label, colours, scale = scaleOf(map)) {
    const [, height, width] = map.shape;
    const result = canvas(width, height, label, { class: "map" });
    const context = result.getContext("2d");
    const image = context.createImageData(width, height);
    paint(image, 0, map.data.subarray(index * height * width, (index + 1) * height * width), width, colours, scale);
    context.putImageData(image, 0, 0);
    return result;
  }

  // All channels side by side, a pixel apart. A click chooses the channel under the pointer.
  function grid(map, chosen, label, colours, choose) {
    const [channels, height, width] = map.shape;
    const columns = channels > 32 ? 16 : 8;
    const rows = Math.ceil(channels / columns);
    const [stepX, stepY] = [width + 1, height + 1];
    const result = canvas(columns * stepX - 1, rows * stepY - 1, label, {
      class: "map grid",
      onclick: (event) => {
        const column = Math.floor((event.offsetX / event.target.clientWidth) * columns);
        const row = Math.floor((event.offsetY / event.target.clientHeight) * rows);
        choose(Math.min(channels - 1, row * columns + column));
      },
    });
    const context = result.getContext("2d");
    const image = context.createImageData(result.width, result.height);
    const scale = scaleOf(map);
    for (let index = 0; index < channels; index++) {
      const offset = Math.floor(index / columns) * stepY * image.width + (index % columns) * stepX;
      paint(
        image,
        offset,
        map.data.subarray(index * height * width, (index + 1) * height * width),
        width,
        colours,
        scale,
      );
    }
    context.putImageData(image, 0, 0);
    const place = `left: ${(100 * (chosen % columns)) / columns}%; top: ${(100 * Math.floor(chosen / columns)) / rows}%; width: ${100 / columns}%; height: ${100 / rows}%`;
    return div("gridbox", result, html("span", { class: "here", style: place }));
  }

  // The mean of all channels, as a thumbnail of the map.
  function mean(map) {
    const [channels, height, width] = map.shape;
    const data = new Float32Array(height * width);
    map.data.forEach((value, index) => {
      data[index % data.length] += value / channels;
    });
    return { shape: [1, height, width], data };
  }

  // Bytes 0..255 as a grey picture.
  function grey(bytes, side, label, more = {}) {
    const result = canvas(side, side, label, { class: "map", ...more });
    const context = result.getContext("2d");
    const image = context.createImageData(side, side);
    bytes.forEach((value, index) => image.data.set([value, value, value, 255], 4 * index));
    context.putImageData(image, 0, 0);
    return result;
  }

  return { palette, scaleOf, channel, grid, mean, grey };
})();
