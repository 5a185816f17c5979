"""A trained network in the formats of others: safetensors for timm, ONNX, and torch.export's .pt2.

In: a checkpoint, or an exported folder. Out: files that were run beside the network before they got their names.
Start with formats.py, which writes and checks; portable.py is the network in operations that exporters have, and
exported.py opens the files again, program.py runs a .pt2 file without running what a stranger may have put into it.
"""
