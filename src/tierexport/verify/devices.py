"""Which device can run which format here, and what is missing where one can't."""


def why_not(name: str, device: str) -> str | None:
    """Why a format can't run on a device ("cpu" or "cuda") of this machine, or None when it can."""
    if device == "cpu":
        return None
    import torch

    if not torch.cuda.is_available():
        return "this machine has no CUDA device, or a CPU build of torch"
    if name == "gguf":
        import llama_cpp

        if not llama_cpp.llama_supports_gpu_offload():
            return 'llama-cpp-python was built without CUDA: CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall it'
    return None
