"""Dask `distributed`, used as membership and transport and for nothing else. Bytes go in and out;
what they mean is decided elsewhere, and nothing of Dask is seen outside this folder.

`hub` is the dispatcher's end and `link` an agent's. `door` decides who may come in, `channel`
carries frames over one connection, `tls` shows and checks certificates: these know no Dask. `comm`
gives that to Dask as a transport of its own, `inside` names what is not public of it, and
`settings` keeps the user's own Dask settings out of it.
"""
