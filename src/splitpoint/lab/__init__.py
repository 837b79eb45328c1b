"""Experiments that can be repeated on one machine: a shaped link, a slowed device, scenarios. No root needed.

    with Relay(server.address, PRESETS["4g"]) as relay, Edge(relay.address, at="middle") as edge:
        edge.infer(photo)
        relay.set_link(PRESETS["3g"])

| what | where |
|---|---|
| a link with rate, delay, jitter, stalls, cuts, changed bytes, before any TCP server | `relay.Relay` (`forwarder`) |
| a device that computes slower | `slow_device`: `Stretched` (an engine), `slowed` (a command) |
| a server, a link and a device as a file | `scenario.Scenario`, run by `experiment.run` |
| what goes wrong, from a seed, and whether every request survives it | `faults.schedule`, `fault_run.run` |

Whatever ran here is emulated, and every result says so. CONTRIBUTING.md says how to add a fault.
"""
