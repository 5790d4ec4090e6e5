"""Models that write what an image shows: a frozen vision encoder, a connector, a causal language model.

Two kinds, one `Captioner`: assembled of a timm backbone, a linear projection and any causal language model of
transformers (`assembled`), or a vision-language model of transformers taken apart (`vlm`).
"""
