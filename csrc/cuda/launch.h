// Launching a kernel on the caller's stream, or emulating it.
#pragma once

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <typeinfo>

#include "cuda/block.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda/interface.h"
#endif

namespace metatasnet::METATASNET_DEVICES {

struct Grid {
  std::int64_t x = 1, y = 1, z = 1;
};

#if defined(__CUDACC__)

struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  throw DeviceError("CUDA failed while " + doing + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                    "). An error of an earlier call may show here; CUDA_LAUNCH_BLOCKING=1 tells.");
}

// Makes the device of a stream the current one as long as this object exists.
class Stream {
 public:
  Stream(int device, std::uintptr_t handle) : handle_(reinterpret_cast<cudaStream_t>(handle)), device_(device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (before_ != device) check(cudaSetDevice(device), "changing to device " + std::to_string(device));
  }
  ~Stream() {
    if (before_ != device_) static_cast<void>(cudaSetDevice(before_));
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t handle() const { return handle_; }
  int device() const { return device_; }

 private:
  cudaStream_t handle_;
  int device_, before_ = 0;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks) kernel(const __grid_constant__
                                                                          typename Kernel::Args args) {
  Block block;
  Kernel::run(block, args);
}

template <class Kernel>
void launch(const Stream& stream, Grid grid, std::size_t shared_bytes, const typename Kernel::Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    throw std::invalid_argument("A launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                                std::to_string(grid.z) + " blocks is too large: pass fewer items or frames at once.");
  }
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  static std::atomic<std::uint64_t> allowed{0};  // devices, by bit
  const std::uint64_t bit = std::uint64_t{1} << (stream.device() % 64);
  if (shared_bytes > kWithoutAsking && !(allowed & bit)) {
    int most = 0;
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device()),
          "asking for the shared memory of a block");
    check(cudaFuncSetAttribute(kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
          "asking for more shared memory");
    allowed |= bit;
  }
  kernel<Kernel><<<dim3(grid.x, grid.y, grid.z), Kernel::threads, shared_bytes, stream.handle()>>>(args);
  check(cudaGetLastError(), std::string("launching ") + __PRETTY_FUNCTION__);
}

// The error that keeps the current device from running a kernel. All kernels of a translation unit run on the same
// devices.
template <class Kernel>
cudaError_t obstacle() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel<Kernel>);
  static_cast<void>(cudaGetLastError());  // otherwise the next launch would report it
  return error;
}

inline void clear(const Stream& stream, void* memory, std::size_t bytes) {
  check(cudaMemsetAsync(memory, 0, bytes, stream.handle()), "clearing memory");
}

#else

class Stream {
 public:
  Stream(int, std::uintptr_t) {}
};

inline void clear(const Stream&, void* memory, std::size_t bytes) {
  if (record({"memset", {1, 1, 1}, 0, 0, static_cast<std::int64_t>(bytes), {}})) return;
  std::memset(memory, 0, bytes);
}

template <class Kernel>
void launch(const Stream&, Grid grid, std::size_t shared_bytes, const typename Kernel::Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const char* const bytes = reinterpret_cast<const char*>(&args);
  if (record({typeid(Kernel).name(), {grid.x, grid.y, grid.z}, Kernel::threads, Kernel::blocks,
              static_cast<std::int64_t>(shared_bytes), std::string(bytes, bytes + sizeof args)})) {
    return;
  }
  emulate(static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z), Kernel::threads, shared_bytes,
          [&](Block& block) { Kernel::run(block, args); });
}

#endif

}  // namespace metatasnet::METATASNET_DEVICES
