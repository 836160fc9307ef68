"""What every HTTP process shares: the request guard, the limits of connections and bodies, the form of refusals.

The control plane, the process of an endpoint, `everloop serve --all` and container images all stand on these modules.
They need no framework, so the data plane stays quick.
"""
