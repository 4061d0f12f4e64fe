TASK = "decay"


def coupled(lr, momentum, decay):
    return lr * decay / (1 - momentum)


FACTOR = coupled(2.048, 0.875, 5e-4) / 5e-4
