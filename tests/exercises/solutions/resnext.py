TASK = "resnext"

ARGUMENTS = {"groups": 32, "width_per_group": 4}
WEIGHTS = 32 * 3 * 3 * 4 * 4
