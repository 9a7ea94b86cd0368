"""Where the API names from before the clean break will live. Nothing is here yet.

Code written against the earlier prototype imports names that Atlas no longer has. This package
will hold them as a thin facade: each call warns once with the name that replaces it, and stored
messages of old versions are lifted to today's by upcasters. It arrives together with the first
release that has an older one to be compatible with; until then importing it gives you nothing,
and new code has no reason to.
"""
