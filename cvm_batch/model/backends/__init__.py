"""What runs the network: PyTorch on CPUs and GPUs, eager or compiled, and OpenVINO.

`starting.start_engine` is the way in. Every backend hands out lanes; `lanes.LanedEngine`
makes an `InferenceEngine` of them.
"""
