"""Recipes of the models that ``specdec.pull`` knows by name, one folder each."""
