"""The neural network, torch only, readable leaf to whole:

attention -> audio_encoder -> projector -> language_model (with kv_cache) -> qwen2_audio.

Sequences of unlike length are *packed*: laid end to end along one `tokens` axis, with their lengths beside them. Nothing
is padded anywhere.
"""
