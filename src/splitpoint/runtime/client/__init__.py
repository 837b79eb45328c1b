"""The device's side: an `Edge` runs heads here, and what asks the server for the rest.

`edge.Edge` is what users hold. One `model_binding.Binding` a server model knows its cuts (`ready_cuts`), its weights
(`held_weights`, `blob_cache`) and its connection (`reconnect`, `channel`); a request's life is in `request`.
"""
