TASK = "parameters"


def parameters(depths):
    total = 7 * 7 * 3 * 64 + 2 * 64 + 2048 * 1000 + 1000
    inputs = 64
    for width, blocks in zip((64, 128, 256, 512), depths, strict=True):
        outputs = 4 * width
        total += inputs * outputs + 2 * outputs
        for _ in range(blocks):
            total += inputs * width + 9 * width * width + width * outputs + 2 * (width + width + outputs)
            inputs = outputs
    return total
