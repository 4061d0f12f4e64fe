// Where the live network's image comes from: the shipped test images, a drawing, or a photograph of the reader's own.
// Nothing leaves the page: a photograph is read into a canvas.
"use strict";

const Inputs = (() => {
  const SIDE = LIVE.side;
  const FINE = 10; // pixels of the drawing pad for each pixel of the image
  const BRIGHT = 127;

  let onImage = () => {};
  let latest = null; // the shipped image that was shown last
  let photograph = null; // {name, bytes} as it was read, before it is inverted

  // ---- the shipped test images, a class in each row

  const shipped = (() => {
    const bytes = Uint8Array.from(atob(LIVE.images), (letter) => letter.charCodeAt(0));
    const size = SIDE * SIDE;
    return LIVE.labels.map((label, index) => ({
      bytes: bytes.subarray(index * size, (index + 1) * size),
      label,
      index,
    }));
  })();

  function show(index) {
    latest = shipped[index];
    onImage(latest);
  }

  function gallery(chosen) {
    latest = shipped[chosen] ?? latest ?? shipped[0];
    return shipped.map(({ bytes, label, index }) =>
      html(
        "label",
        { class: "shipped", "data-index": index, title: LIVE.classes[label] },
        html("input", {
          type: "radio",
          name: "shipped",
          value: index,
          checked: index === chosen,
          "aria-label": `Test image ${index + 1}, ${LIVE.classes[label]}`,
          onchange: () => show(index),
        }),
        Maps.grey(bytes, SIDE, ""),
        html("span", { class: "verdict", "aria-hidden": "true" }),
      ),
    );
  }

  // ---- a drawing

  const pad = byId("pad");
  const pen = pad.getContext("2d", { willReadFrequently: true });
  const cursor = byId("cursor");
  let place = { x: pad.width / 2, y: pad.height / 2, down: false };

  // The means of FINE x FINE pixels of a canvas, as grey bytes.
  function shrunk(context) {
    const { data } = context.getImageData(0, 0, SIDE * FINE, SIDE * FINE);
    const sums = new Float64Array(SIDE * SIDE);
    for (let y = 0; y < SIDE * FINE; y++) {
      for (let x = 0; x < SIDE * FINE; x++) {
        const pixel = 4 * (y * SIDE * FINE + x);
        const light = 0.299 * data[pixel] + 0.587 * data[pixel + 1] + 0.114 * data[pixel + 2];
        sums[Math.floor(y / FINE) * SIDE + Math.floor(x / FINE)] += light / FINE ** 2;
      }
    }
    return Uint8ClampedArray.from(sums);
  }

  const drawn = () => onImage({ bytes: shrunk(pen), label: null, index: null, name: "Your drawing" });

  function stroke(to) {
    const shade = byId("erase").checked ? 0 : 215;
    pen.strokeStyle = `rgb(${shade}, ${shade}, ${shade})`;
    pen.lineWidth = Number(byId("brush").value);
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(place.x, place.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
    place = { ...place, ...to };
  }

  function showCursor() {
    cursor.style.left = `${(100 * place.x) / pad.width}%`;
    cursor.style.top = `${(100 * place.y) / pad.height}%`;
    cursor.classList.toggle("down", place.down);
  }

  function clearPad() {
    pen.fillStyle = "black";
    pen.fillRect(0, 0, pad.width, pad.height);
    drawn();
  }

  // The pad shows an image, to be drawn on.
  function startFrom({ bytes }) {
    pen.imageSmoothingEnabled = false;
    pen.drawImage(Maps.grey(bytes, SIDE, ""), 0, 0, pad.width, pad.height);
    drawn();
  }

  const at = (event) => ({
    x: (event.offsetX * pad.width) / pad.clientWidth,
    y: (event.offsetY * pad.height) / pad.clientHeight,
  });
  const STEPS = { ArrowLeft: [-FINE, 0], ArrowRight: [FINE, 0], ArrowUp: [0, -FINE], ArrowDown: [0, FINE] };

  function withKeys(event) {
    if (event.key === " ") {
      place.down = !place.down;
      if (place.down) stroke({ x: place.x, y: place.y });
    } else if (event.key in STEPS) {
      const [x, y] = STEPS[event.key];
      const to = {
        x: Math.min(pad.width, Math.max(0, place.x + x)),
        y: Math.min(pad.height, Math.max(0, place.y + y)),
      };
      if (place.down) stroke(to);
      else place = { ...place, ...to };
    } else return;
    event.preventDefault();
    showCursor();
    if (place.down) drawn();
  }

  pad.addEventListener("pointerdown", (event) => {
    pad.setPointerCapture(event.pointerId);
    place = { ...at(event), down: true };
    stroke(at(event));
  });
  pad.addEventListener("pointermove", (event) => {
    if (place.down && event.buttons) stroke(at(event));
  });
  pad.addEventListener("pointerup", () => {
    place.down = false;
    showCursor();
    drawn();
  });
  pad.addEventListener("keydown", withKeys);
  pad.addEventListener("focus", showCursor);

  // ---- a photograph

  async function readPhotograph(file) {
    const status = byId("photo-status");
    let picture;
    try {
      picture = await createImageBitmap(file);
    } catch {
      status.textContent = `${file.name} cannot be read as an image. Choose a JPEG, PNG or WebP file.`;
      return;
    }
    const side = Math.min(picture.width, picture.height);
    const context = html("canvas", { width: SIDE * FINE, height: SIDE * FINE }).getContext("2d");
    context.fillStyle = "white"; // behind what is transparent
    context.fillRect(0, 0, SIDE * FINE, SIDE * FINE);
    context.imageSmoothingQuality = "high";
    context.drawImage(
      picture,
      (picture.width - side) / 2,
      (picture.height - side) / 2,
      side,
      side,
      0,
      0,
      SIDE * FINE,
      SIDE * FINE,
    );
    photograph = { name: file.name, bytes: shrunk(context) };
    byId("invert").checked = borderOf(photograph.bytes) > BRIGHT;
    status.textContent = `${file.name}: the middle ${side} × ${side} pixels, shrunk to ${SIDE} × ${SIDE} and made grey.`;
    showPhotograph();
  }

  function borderOf(bytes) {
    const border = bytes.filter(
      (_, index) => index < SIDE || index >= SIDE * (SIDE - 1) || index % SIDE === 0 || index % SIDE === SIDE - 1,
    );
    return border.reduce((sum, value) => sum + value, 0) / border.length;
  }

  function showPhotograph() {
    if (!photograph) return;
    const bytes = byId("invert").checked ? photograph.bytes.map((value) => 255 - value) : photograph.bytes;
    onImage({ bytes, label: null, index: null, name: photograph.name });
  }

  byId("photo").addEventListener("change", ({ target }) => {
    if (target.files.length) readPhotograph(target.files[0]);
  });
  byId("invert").addEventListener("change", showPhotograph);
  byId("clear").addEventListener("click", clearPad);
  byId("start-from").addEventListener("click", () => startFrom(latest));

  // ---- which of the three is open

  for (const choice of document.querySelectorAll('input[name="source"]')) {
    choice.addEventListener("change", () => {
      open(choice.value);
      if (choice.value === "images") onImage(latest);
      else if (choice.value === "draw") drawn();
      else showPhotograph();
    });
  }

  function open(source) {
    for (const name of ["images", "draw", "photograph"]) {
      byId(`source-${name}`).hidden = name !== source;
      byId(`choose-${name}`).checked = name === source;
    }
  }

  return {
    shipped,
    gallery,
    open,
    set onImage(listener) {
      onImage = listener;
    },
  };
})();
