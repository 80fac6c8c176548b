"""What a model is trained to do, by the `kind` of the objective table.

An objective is a module. The job, the loop and the command line ask it everything that depends on what is learned, in
this order; `Objective` lists the questions. The rest of training does not know tokens from strips.
"""

from train.objective import Objective
from train.objectives import adversarial, masked_patches, next_patch, next_token

OBJECTIVES: dict[str, Objective] = {
    "next_token": next_token,
    "masked_patches": masked_patches,
    "next_patch": next_patch,
    "adversarial": adversarial,
}
