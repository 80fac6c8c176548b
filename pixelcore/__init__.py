"""The models, and everything they are made of, in plain PyTorch. Imports none of the project's other packages."""
