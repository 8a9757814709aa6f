"""llava_lab: the lab in which the LLaVA family is taken apart.

The folders follow one sample from disk to a row of a table; each module's docstring opens with
its leg of that way.

    data/      1 sample   2 chat   3 views, batch, loader
    model/     4 encoder  5 pool   6 connector  7 layout  8 splice  9 LM on a packed forest
    train/    10 loss, and the stages that minimise it
    evaluate/ 11 questions, answers, metrics
    report/   12 the row
    exchange/ 13 released checkpoints in, ours out; answers and captions from any of them
    world/    the tiny world: pictures and texts in the official formats, made in seconds
"""

__version__ = "0.4.0"
