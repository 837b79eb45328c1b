"""What a network costs on a machine it never ran on: a latency model for each kind of kernel, learned once a device.

`kernels` finds in a model what is priced, and by which columns; `calibrate` measures this device; `learn` makes a
`Latency` of what was measured (with scikit-learn, not needed afterwards); `price` turns one and a model into the
profile that planning takes; `accuracy` says how good that is. After Kang et al., Neurosurgeon (ASPLOS 2017), and
nn-Meter (MobiSys 2021), from whom it has that what fuses is priced as one.
"""
