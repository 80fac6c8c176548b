"""Text as rows of pixels: cleaned, joined, measured and kept once (rows, row_store), drawn whenever a step needs them
(drawing, row_batches) and laid out for what is learned (strip_batches, patch_batches). Processes that draw import
`rows` and `drawing` and no torch, so that they start at once."""
