"""Running a model in two places: `server` holds models and runs tails, `client` runs heads and asks for the rest.

    with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
        with Edge(server.address, at="pool1") as edge:
            result = edge.infer(digit)
            print(result.outputs, result.trace)

| room | what it is for |
|---|---|
| `client` | a device: heads, the connection, one request and its answer, whatever becomes of the server |
| `server` | a server: who is let in, whose turn it is, workers, compiled tails, batches, limits |
| `adapt` | when the cut moves, and moving it |
| `probe` | measuring the link, and the server's clock |
| `stream` | items in, answers out, several under way |

Several of them use `result`, `events`, `threads`, `circuit_breaker`, `codec_choice` and `model_choice`.
"""
