"""`python -m infer report`: what a fine-tuned model does on a file, as one page to look at.

cases.py        each example with what was right and what was said, and how sure the model was; errors first
strips.py       its strip as pictures, folded into lines, with labels under the patches that they belong to
confusion.py    which label was taken for which
curves.py       the losses and figures of the run
page.py         all of it as one HTML file that needs nothing else: no scripts, no files beside it
"""
