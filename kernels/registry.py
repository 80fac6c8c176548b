"""Every kernel's file by the name of its operation, for the workshop, which checks, inspects and times them all."""

from kernels import glu

KERNELS = {
    "glu": glu,
}
