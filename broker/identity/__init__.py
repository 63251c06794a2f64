"""RULES: who is asking, and what their token lets them ask.

Signed requests (``proof``, ``nonce``), tokens and assertions (``token``), what a token covers
(``scope``), and how a machine's key comes to belong to a principal (``enrolment``). No module here
reads a clock, makes randomness or touches the world: time comes in as milliseconds since 1970.
"""
