"""RULES: only the named recipient can read it, and only as its publisher signed it.

``extents`` is the arithmetic and the keys, ``stream`` the cipher, ``digest`` what the manifest commits
to, ``reader`` the two joined (what a client uses), ``manifest`` the publisher's signed list, ``seal``
and ``lease`` what goes to one recipient, ``wrap`` what a wrapped version key is bound to.
"""
