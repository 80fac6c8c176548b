"""What a model is trained to do, by the `kind` of the objective table.

An objective is a module. The job, the loop and the command line ask it everything that depends on what is learned, in
this order; `Objective` lists the questions. The rest of training does not know tokens from strips.
"""

from train.config_tasks import TASK_OPTIONS
from train.objective import Objective
from train.objectives import adversarial, masked_patches, masked_tokens, next_patch, next_token, task

OBJECTIVES: dict[str, Objective] = {
    "next_token": next_token,
    "mlm": masked_tokens,
    "masked_patches": masked_patches,
    "next_patch": next_patch,
    "adversarial": adversarial,
    **dict.fromkeys(TASK_OPTIONS, task),
}
