"""Analyses of the loss landscape. Each module answers one question and imports no other analysis.

``alignment_result`` is the result of ``alignment``, apart so that readers do not need torch.
"""
