"""Makes drafters: data written by the target, distillation, export, evaluation.

The run path never imports this package; torch and matplotlib (the extra ``distill``) are imported
only in here.
"""
