"""The legend of shape letters, and the one check that is made where packages meet.

A tensor's name ends in its shape: `q_NHK` is [rows, heads, head size]. The letters mean the same thing everywhere:

    B  sequences in a dense batch         N  rows of a packed micro-batch (tokens, patches, CLS)
    T  tokens in a dense sequence         D  width of the model
    H  query heads                        G  key/value heads
    K  head size                          F  hidden width of a feed-forward layer
    V  vocabulary                         E  experts
    R  rank of an adapter                 J  experts chosen for one token
    S  tokens of a training block; keys    M  documents of a packed micro-batch
    C  tokens held by a key/value cache   O  output features of a linear map

Models that read strips of pixels add

    P  patches of a micro-batch           A  values of one patch: rows, columns, channels
    L  patches of a strip, places of it   C  channels
    N  rows that the encoder reads        R  rows that the decoder paints: hidden patches too
    M  patches that the loss scores       Y  height of a strip in pixels, X its width
    W  words of a strip                   U  words or patches, and CLS
    Z  components of a mixture            F  fakes: predictions that a discriminator judges
"""

from torch import Tensor


def check_shape(tensor: Tensor, letters: str, **sizes: int) -> dict[str, int]:
    """Compare a tensor's shape with letters such as "B T" and return the size of each letter.

    sizes fixes letters to known values. Raises ValueError with both shapes if the rank or a fixed size differs.
    """
    names = letters.split()
    found = dict(zip(names, tensor.shape, strict=False))
    wrong = [name for name, size in sizes.items() if found.get(name) != size]
    if len(names) != tensor.dim() or wrong:
        fixed = "".join(f", {name} = {size}" for name, size in sizes.items())
        raise ValueError(f"expected shape [{letters}]{fixed}; got {list(tensor.shape)}")
    return found
