import torch

TASK = "ranks"


def normalize(batch, num_ranks):
    parts = []
    for part in batch.chunk(num_ranks):
        mean = part.mean((0, 2, 3), keepdim=True)
        variance = part.var((0, 2, 3), keepdim=True, correction=0)
        parts.append((part - mean) / (variance + 1e-5).sqrt())
    return torch.cat(parts)


WEIGHTS = True
RUNNING_MEANS = False
OUTPUT_OF_THE_SAME_IMAGE = False
LEARNING_RATE = True
