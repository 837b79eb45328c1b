"""Measuring a link and a server's clock over a connection: thoroughly (`link_probe`), or in passing (`quick_probe`)."""
