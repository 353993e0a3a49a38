"""For the tests of storage backends, and of programs that use a store. Needs pytest; nothing else imports it.

- `conformance`: the tests that every storage backend must pass.
- `faults`: a proxy before an S3 server that resets, stalls, truncates and changes what it passes; a small disk.
- `promises`: plans for that proxy, by which a server breaks one promise of docs/format.md.
- `seaweedfs`, `moto_server`, `rclone`: S3 servers on loopback; `servers` has what they share.
- `pytest_plugin`: fixtures of these servers.
- `flows`: runs flow files with Metaflow, in a separate local datastore.
"""
