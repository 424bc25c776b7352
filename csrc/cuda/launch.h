// Launching a kernel on the caller's stream, or emulating it.
#pragma once

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
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

// Blocks along x that are a cluster.
template <class Kernel, class = void>
constexpr int cluster_of = 1;
template <class Kernel>
constexpr int cluster_of<Kernel, std::void_t<decltype(Kernel::cluster)>> = Kernel::cluster;

// Blocks wait for each other, so all of a grid must run at the same time (blocks_at_once).
template <class Kernel, class = void>
constexpr bool runs_together = false;
template <class Kernel>
constexpr bool runs_together<Kernel, std::void_t<decltype(Kernel::together)>> = Kernel::together;

constexpr int kMultiprocessors = 132;  // an H100 has so many

// Matrices (count, rows, channels) in bfloat16. TMA copies `box` rows of 64 channels at once.
struct Matrices {
  const void* data;
  std::int64_t channels, rows, count;
  std::int64_t row_bytes, matrix_bytes;  // from one to the next
  int box;

  // The strides that the driver gets, multiples of 16 bytes. A dimension of one element may have any stride in a tensor, so
  // the distance without gaps replaces it.
  std::int64_t row_step() const { return rows > 1 ? row_bytes : (channels * 2 + 15) / 16 * 16; }
  std::int64_t matrix_step() const { return count > 1 ? matrix_bytes : rows * row_step(); }
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

inline TensorMap tensor_map(const Matrices& m) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "asking the driver for cuTensorMapEncodeTiled");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result),
          "asking the driver for cuTensorMapEncodeTiled");
#endif
    if (result != cudaDriverEntryPointSuccess) throw DeviceError("The driver has no cuTensorMapEncodeTiled: update it.");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(m.channels), static_cast<cuuint64_t>(m.rows),
                              static_cast<cuuint64_t>(m.count)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(m.row_step()), static_cast<cuuint64_t>(m.matrix_step())};
  const cuuint32_t box[] = {kRowBytes / sizeof(Bfloat16), static_cast<cuuint32_t>(m.box), 1}, steps[] = {1, 1, 1};
  TensorMap map;
  const CUresult error =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(m.data), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error == CUDA_SUCCESS) return map;
  throw DeviceError("The driver makes no tensor map (error " + std::to_string(error) + ") of " +
                    std::to_string(m.count) + " x " + std::to_string(m.rows) + " x " + std::to_string(m.channels) +
                    " with strides of " + std::to_string(m.matrix_step()) + " and " + std::to_string(m.row_step()) +
                    " bytes.");
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks) kernel(const __grid_constant__
                                                                          typename Kernel::Args args) {
  Block block;
  Kernel::run(block, args);
}

// Lets a kernel ask for as much shared memory as a block may have.
template <class Kernel>
void allow(const Stream& stream, std::size_t shared_bytes) {
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  static std::atomic<std::uint64_t> allowed{0};  // devices, by bit
  const std::uint64_t bit = std::uint64_t{1} << (stream.device() % 64);
  if (shared_bytes <= kWithoutAsking || (allowed & bit)) return;
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device()),
        "asking for the shared memory of a block");
  check(cudaFuncSetAttribute(kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        "asking for more shared memory");
  allowed |= bit;
}

// The blocks of a kernel that the device runs at the same time if nothing else runs.
template <class Kernel>
int blocks_at_once(const Stream& stream, std::size_t shared_bytes) {
  allow<Kernel>(stream, shared_bytes);
  int each = 0, multiprocessors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel<Kernel>, Kernel::threads, shared_bytes),
        "asking how many blocks fit on a multiprocessor");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device()),
        "asking for the number of multiprocessors");
  return each * multiprocessors;
}

template <class Kernel>
void launch(const Stream& stream, Grid grid, std::size_t shared_bytes, const typename Kernel::Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    throw std::invalid_argument("A launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                                std::to_string(grid.z) + " blocks is too large: pass fewer items or frames at once.");
  }
  allow<Kernel>(stream, shared_bytes);
  const dim3 blocks(grid.x, grid.y, grid.z);
  const std::string doing = std::string("launching ") + __PRETTY_FUNCTION__;
  if constexpr (cluster_of<Kernel> == 1 && !runs_together<Kernel>) {
    kernel<Kernel><<<blocks, Kernel::threads, shared_bytes, stream.handle()>>>(args);
    check(cudaGetLastError(), doing);
  } else {
    cudaLaunchAttribute attribute{};
    if constexpr (runs_together<Kernel>) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    } else {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {cluster_of<Kernel>, 1, 1};
    }
    const cudaLaunchConfig_t how{blocks, dim3(Kernel::threads), shared_bytes, stream.handle(), &attribute, 1};
    check(cudaLaunchKernelEx(&how, kernel<Kernel>, args), doing);
  }
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
  if (record({"memset", {1, 1, 1}, 0, 0, 1, static_cast<std::int64_t>(bytes), {}})) return;
  std::memset(memory, 0, bytes);
}

inline TensorMap tensor_map(const Matrices& m) {
  if (m.row_step() % 16 || m.matrix_step() % 16 || reinterpret_cast<std::uintptr_t>(m.data) % 16) {
    throw std::logic_error("A tensor map is not aligned to 16 bytes.");
  }
  return {m.data,
          {static_cast<std::uint64_t>(m.channels), static_cast<std::uint64_t>(m.rows), static_cast<std::uint64_t>(m.count)},
          {static_cast<std::uint64_t>(m.row_step()), static_cast<std::uint64_t>(m.matrix_step())},
          {kRowBytes / static_cast<std::uint32_t>(sizeof(Bfloat16)), static_cast<std::uint32_t>(m.box)},
          {}};
}

template <class Kernel>
void launch(const Stream&, Grid grid, std::size_t shared_bytes, const typename Kernel::Args& args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const char* const bytes = reinterpret_cast<const char*>(&args);
  if (record({typeid(Kernel).name(), {grid.x, grid.y, grid.z}, Kernel::threads, Kernel::blocks, cluster_of<Kernel>,
              static_cast<std::int64_t>(shared_bytes), std::string(bytes, bytes + sizeof args)})) {
    return;
  }
  emulate(static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z), Kernel::threads, shared_bytes,
          [&](Block& block) { Kernel::run(block, args); }, cluster_of<Kernel>, runs_together<Kernel>);
}

template <class Kernel>
int blocks_at_once(const Stream&, std::size_t) {
  return multiprocessors();
}

#endif

}  // namespace metatasnet::METATASNET_DEVICES
