"""What routing needs to compile and launch its kernels."""

from thermoe.kernels.cuda_build import CudaUnavailableError, Kernel, compile_source, device_files, is_available

__all__ = ["CudaUnavailableError", "Kernel", "compile_source", "device_files", "is_available"]
