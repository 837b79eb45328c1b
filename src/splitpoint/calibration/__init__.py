"""What codecs do to the answers: real inputs through every cut × codec, bytes and quality recorded.

`values` holds what a calibration is (pure, from JSON alone); `measure` makes one.
"""
