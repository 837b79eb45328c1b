"""The server's side: holds models, hands out graphs and weights, compiles tails on demand and runs them.

`server.Server` is what users hold. A frame's way: `admission` (who is not let in yet) → `connection` (one client) →
`fair_queue` (whose turn it is) → `worker_pool` → `batch_runner` and `compiled_tails`. What one client may take is in
`quotas`, how long a run may take in `run_limits`, what leaves of a model in `weight_sharing`.
"""
