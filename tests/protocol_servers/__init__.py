"""Servers that behave as Text Generation Inference 3.3 and vLLM 0.33 do on the wire, for tests without a GPU.

Built from the servers' published schemas and sources. No real TGI or vLLM was run to make them.
"""
