"""Session protocols: what is said over a connection before, between and after sessions.

Sans-I/O: a protocol is fed what was received and asked what to send. It knows
no socket, no thread and no clock, so a hundred of them are driven by one loop
and every step is tested with plain values.
"""
