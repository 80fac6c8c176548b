"""What a model is trained to do, by the `kind` of the objective table."""

from train.objectives import next_token

OBJECTIVES = {"next_token": next_token}
