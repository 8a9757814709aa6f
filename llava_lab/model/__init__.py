"""Legs 4 to 9: from pixels and token ids to hidden states.

Letters in shapes: n views (tiles or frames), s view side in pixels, p patches, h heads, d width,
v visual tokens, t tokens of a packed row, q queries, k keys.
"""
