// The evidence for a class: its logit is the sum of what each feature, and just as exactly each place of the last map,
// adds to it.
"use strict";

const Evidence = (() => {
  function show(pixels, edited, label, colours) {
    const [channels, height, width] = edited.last.shape;
    const weights = LiveNetwork.tensors["fc.weight"].data.subarray(label * channels, (label + 1) * channels);
    const bias = LiveNetwork.tensors["fc.bias"].data[label];
    const shares = Array.from(edited.pooled, (value, channel) => ({ channel, value: value * weights[channel] }));
    const ranked = [...shares].sort((left, right) => Math.abs(right.value) - Math.abs(left.value));
    const places = new Float32Array(height * width);
    edited.last.data.forEach((value, index) => {
      places[index % places.length] += (value * weights[Math.floor(index / places.length)]) / places.length;
    });
    const rest = ranked.slice(12).reduce((total, { value }) => total + value, 0);
    const lines = [
      ...ranked.slice(0, 12).map(({ channel, value }) => [`feature ${channel + 1}`, value, channel]),
      [`the other ${channels - 12}`, rest, null],
      ["bias", bias, null],
    ];
    const largest = Math.max(...lines.map(([, value]) => Math.abs(value)), 1e-9);

    const line = ([words, value, channel]) =>
      html(
        "li",
        { class: "line-of" },
        channel === null ? span("tiny") : Maps.channel(edited.last, channel, "", colours),
        span("words", words),
        span(
          "balance",
          html("span", { class: value < 0 ? "minus" : "plus", style: `width: ${(50 * Math.abs(value)) / largest}%` }),
        ),
        span("number", signed(value)),
      );
    const scale = Math.max(...places.map(Math.abs)) || 1;
    return [
      html("h2", {}, `Evidence for ${LIVE.classes[label]}`),
      html(
        "p",
        { class: "hint" },
        "The logit is a sum. It splits among the 64 pooled features and, just as exactly, among the places of the last map. Choose another class among the answers.",
      ),
      html(
        "div",
        { class: "evidence" },
        html(
          "figure",
          { class: "places" },
          div(
            "overlay",
            Maps.grey(pixels, LIVE.side, ""),
            Maps.channel(
              { shape: [1, height, width], data: places },
              0,
              `Where the evidence for ${LIVE.classes[label]} lies`,
              colours,
              scale,
            ),
          ),
          html(
            "figcaption",
            {},
            `${height} × ${width} places: together ${signed(places.reduce((total, value) => total + value, 0))}, with the bias ${edited.logits[label].toFixed(2)}`,
          ),
        ),
        html(
          "ol",
          { class: "lines" },
          lines.map(line),
          html(
            "li",
            { class: "line-of total" },
            span("tiny"),
            span("words", "logit"),
            html("span", {}),
            span("number", edited.logits[label].toFixed(2)),
          ),
        ),
      ),
    ];
  }

  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

  return { show };
})();
