"""An execution provider for ONNX Runtime with faster kernels for quantized weights on x86 processors.

    import onnxruntime as ort
    import onnxruntime_ep_lfm2vl as kernels

    kernels.register(ort)
    session = ort.InferenceSession("model.onnx", kernels.session_options(ort))

The provider runs the nodes that it has kernels for, and ONNX Runtime the others.
"""

import pathlib

__all__ = ["get_ep_name", "get_ep_names", "get_library_path", "register", "session_options"]


def get_library_path() -> str:
    """The provider's library, for ``onnxruntime.register_execution_provider_library``."""
    folder = pathlib.Path(__file__).parent
    names = [
        "libonnxruntime_providers_lfm2vl.so",
        "libonnxruntime_providers_lfm2vl.dylib",
        "onnxruntime_providers_lfm2vl.dll",
    ]
    for name in names:
        if (folder / name).is_file():
            return str(folder / name)
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}; install the package again")


def get_ep_name() -> str:
    """The provider's name in ONNX Runtime."""
    return "Lfm2VlExecutionProvider"


def get_ep_names() -> list[str]:
    """The names of all its providers, of which there is one."""
    return [get_ep_name()]


def register(ort) -> None:
    """Registers the library with the module ``onnxruntime``, once for the process."""
    if not any(device.ep_name == get_ep_name() for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(get_ep_name(), get_library_path())


def session_options(ort, options=None, instructions=None):
    """Session options that name the provider, then the CPU.

    ``instructions`` is one of portable, avx2, avx-vnni, avx512-vnni and amx; by default the best that
    the processor has.
    """
    options = options or ort.SessionOptions()
    settings = {"instructions": instructions} if instructions else {}
    devices = [device for device in ort.get_ep_devices() if device.ep_name == get_ep_name()]
    options.add_provider_for_devices(devices, settings)
    return options
