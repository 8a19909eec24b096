"""The explanation methods and the metrics of their maps.

one_pass.py      activations and gradients -> maps, in TensorFlow
many_pass.py     perturbed images -> maps, in NumPy
fusion.py        the maps of several layers -> one map
faithfulness.py  heat maps -> how well they show what decides: deletion, insertion and others
"""
