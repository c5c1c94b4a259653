"""Voice turns over one connection, in the events of OpenAI's Realtime API. Sockets are in `routes/realtime.py`."""
