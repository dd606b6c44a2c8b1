"""How a model is trained so that its vectors survive quantization: what is trained, the loop, the losses, the comparison.

How a vector is stored, and by which bounds, is in `vectors`, which knows nothing of training.
"""
