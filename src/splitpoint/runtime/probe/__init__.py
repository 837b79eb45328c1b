"""Measuring a link (`link_probe`) and a server's clock (`server_clock`) over a connection, by pings (`ping`)."""
