"""What codecs do to the answers: real inputs through every cut × codec, bytes and quality recorded.

`calibrations` holds what a calibration is (pure, from JSON alone); `codec_trials` makes one.
"""
