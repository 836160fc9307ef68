"""What every HTTP process shares: the request guard, limits for connections and bodies, and the form of errors.

The control plane, endpoint processes, `everloop serve --all` and container images all use these modules. They need no
framework, so the data plane stays fast.
"""
