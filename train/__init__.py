"""The training loop: `python -m train --preset NAME`."""
