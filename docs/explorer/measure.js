// The accuracy on the shipped test images, with one change of the network after the other, in a worker of its own.
"use strict";

const Measure = (() => {
  const keyOf = (edits) => JSON.stringify(edits);
  const found = new Map(); // key -> the class found for each image; shorter while the worker is at it
  let queue = [];
  let worker = null;
  let running = null;
  let onProgress = () => {};

  const SCRIPT = `
    onmessage = ({ data: { tensors, images, edits } }) => {
      for (const image of images) postMessage(Network.best(Network.run(tensors, image, edits).logits));
    };`;

  function next() {
    if (running || !queue.length) return;
    running = queue.shift();
    const labels = [];
    found.set(keyOf(running), labels);
    worker.onmessage = ({ data: label }) => {
      labels.push(label);
      const isDone = labels.length === LIVE.labels.length;
      if (isDone) running = null;
      if (isDone || labels.length % 10 === 0) onProgress();
      if (isDone) next();
    };
    worker.postMessage({ tensors: LiveNetwork.tensors, images: LiveNetwork.images, edits: running });
  }

  function start() {
    const source = `${byId("network-source").textContent}\n${SCRIPT}`;
    worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  }

  // Measures these edits before all others. What runs is begun again afterwards.
  function measure(edits, isUrgent = true) {
    const key = keyOf(edits);
    if (found.has(key) || queue.some((each) => keyOf(each) === key)) return;
    if (!worker) start();
    if (isUrgent && running) {
      worker.terminate();
      found.delete(keyOf(running));
      queue.unshift(running);
      running = null;
      start();
    }
    queue = isUrgent ? [edits, ...queue] : [...queue, edits];
    next();
  }

  return {
    measure,
    of: (edits) => found.get(keyOf(edits)),
    set onProgress(listener) {
      onProgress = listener;
    },
  };
})();
