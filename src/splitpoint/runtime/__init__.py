"""Running a model in two places: `server` holds models and runs tails, `edge` runs heads and asks for the rest.

    with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
        with Edge(server.address, at="pool1") as edge:
            result = edge.infer(digit)
            print(result.outputs, result.trace)

`channel` is one conversation as the device sees it, `clock` maps the server's clock onto the device's, `cache`
keeps weights by hash, `compute` and `tails` are the server's workers and compiled segments.
"""
