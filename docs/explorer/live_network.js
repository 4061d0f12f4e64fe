// The trained network of this page and what may be changed in it.
"use strict";

const LiveNetwork = (() => {
  const bytes = Uint8Array.from(atob(LIVE.weights), (letter) => letter.charCodeAt(0));
  const tensors = Network.readTensors(bytes);
  const names = Network.blockNames(tensors);
  const asImage = (pixels) => Network.normalised(pixels, [1, LIVE.side, LIVE.side], LIVE.mean, LIVE.deviation);

  // Each switch: its words, what it changes, and what a reader sees when it is on.
  const SWITCHES = {
    shortcuts: {
      words: "Shortcuts off",
      hint: "Each block passes on its branch only, as in a plain network.",
      lesson:
        "Each branch learned what to add to its input. Without that input, little of the image is left after a few blocks: look at the pictures of layer3.",
      on: { cut: names },
    },
    norm: {
      words: "BatchNorm off",
      hint: "The convolutions' outputs go on as they are.",
      lesson:
        "The weights expect maps that BatchNorm has shifted and scaled. Without it the sizes drift from block to block: compare the logits with those as trained.",
      on: { noNorm: true },
    },
    relu: {
      words: "ReLU before the addition",
      hint: "The branch can then only add, never take away.",
      lesson:
        "A common mistake in hand-written ResNets. Shapes and parameters stay the same, so that the weights load without complaint.",
      on: { earlyRelu: true },
    },
    stride: {
      words: "Stride on the second convolution",
      hint: "The same weights, with the halving one convolution later.",
      lesson:
        "Another mistake that no shape shows. The first convolution of layer2.0 and layer3.0 then works at twice the resolution that it was trained for.",
      on: { lateStride: true },
    },
  };
  const SKIPPED =
    "The shortcut hands the map on, so that a skipped block costs only what its branch would have added (Veit et al. 2016). Where the shape changes, zeros stand in for the new channels.";

  return { tensors, names, asImage, SWITCHES, SKIPPED, images: Inputs.shipped.map(({ bytes }) => asImage(bytes)) };
})();
