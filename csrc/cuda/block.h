// One thread's view of its block: indices, shared memory, barriers, and the operations of a warp.
//
// The emulated Block (emulator/block.h) has the same members, so kernels are written once.
#pragma once

#include "cuda/device.h"

#if !defined(__CUDACC__)
#include "cuda/emulator/block.h"
#else

namespace metatasnet::cuda {

class Block {
 public:
  METATASNET_DEVICE int thread() const { return thread_; }
  METATASNET_DEVICE int lane() const { return thread() % kWarp; }
  METATASNET_DEVICE int warp() const { return thread() / kWarp; }
  // Reads thread() again, so that no value computed from it is kept in registers across the call.
  METATASNET_DEVICE void forget() { asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread_)); }
  // Read again at each call: a kept value would cost a register in a product's loop.
  METATASNET_DEVICE int x() const {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
  }
  METATASNET_DEVICE int y() const {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(index));
    return index;
  }
  METATASNET_DEVICE int z() const {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(index));
    return index;
  }

  METATASNET_DEVICE char* shared() const {
    extern __shared__ __align__(128) char memory[];
    return memory;
  }

  METATASNET_DEVICE void sync() const { __syncthreads(); }

  // Between blocks: writing what another block of this launch reads; what this thread wrote before is seen by all before
  // what it writes after; counting, returns the number before; reading what another block of this launch wrote.
  template <class T>
  METATASNET_DEVICE void publish(T* to, T value) const {
    *to = value;
  }
  METATASNET_DEVICE void fence() const { __threadfence(); }
  METATASNET_DEVICE int increment(int* count) const { return atomicAdd(count, 1); }
  template <class T>
  METATASNET_DEVICE T load_written(const T* from) const {
    return __ldcg(from);
  }

  METATASNET_DEVICE float shuffle(float value, int lane) const { return __shfl_sync(~0u, value, lane); }
  METATASNET_DEVICE float shuffle_xor(float value, int mask) const { return __shfl_xor_sync(~0u, value, mask); }
  METATASNET_DEVICE double shuffle_xor(double value, int mask) const { return __shfl_xor_sync(~0u, value, mask); }

  // Copy 16 bytes to shared memory in the background, to `to` bytes after shared(); zeros unless `valid`. Both
  // addresses are multiples of 16.
  METATASNET_DEVICE void copy_async(int to, const void* from, bool valid) const {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address() + to), "l"(from), "r"(bytes)
                 : "memory");
  }
  METATASNET_DEVICE void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Wait until at most `pending` of this thread's groups are unfinished.
  template <int pending>
  METATASNET_DEVICE void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
  }

  // Load four matrices of 8 x 16 bytes from shared memory. Lane `l` gives the offset from shared() of row `l % 8` of
  // matrix `l / 8` (layout: mma_layout.h).
  METATASNET_DEVICE void load_matrices(std::uint32_t (&registers)[4], int row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address() + row)
                 : "memory");
  }

  // d += a b, of shapes 16 x 16 and 16 x 8 in bfloat16, 16 x 8 and 8 x 8 in tf32 (layout: mma_layout.h).
  METATASNET_DEVICE void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  METATASNET_DEVICE void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

 private:
  METATASNET_DEVICE int shared_address() const { return static_cast<int>(__cvta_generic_to_shared(shared())); }

  int thread_ = static_cast<int>(threadIdx.x);
};

}  // namespace metatasnet::cuda

#endif
