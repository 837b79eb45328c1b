"""A queue of requests for different models, planned together and run as one pipeline.

    tasks ─► Fleet (an Edge for each model, surveyed) ─► Menu (choices of each) ─► a policy: order and cuts ─► QueueRun

`schedule` is the queue in virtual time and the policies `fifo`, `edf` and `sjf`, which leave each request the plan that
is best for it alone. `joint_search` chooses the plans too. `queue_run` runs a queue for real, in the same way for every
policy. Adding a policy: `policies`.
"""
