"""What is done to one image in a worker: decoding, resizing, cropping, augmentation.

In: the bytes of a file, and (seed, epoch, index), which all randomness is a function of. Out: uint8 pixels H x W x 3.
Start with augmentation.py; decode.py and crops.py are what it stands on.
"""
