// One thread's view of its block: indices, shared memory, barriers, and the operations of a warp.
//
// The emulated Block (emulator/block.h) has the same members, so kernels are written once.
#pragma once

#include "cuda/device.h"
#include "cuda/wgmma_layout.h"

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
    extern __shared__ __align__(kSwizzleBytes) char memory[];
    return memory;
  }

  METATASNET_DEVICE void sync() const { __syncthreads(); }
  METATASNET_DEVICE void sync_warp() const { __syncwarp(); }

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
  METATASNET_DEVICE Words load_written(const Words* from) const {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(from));
    return {{words.x, words.y, words.z, words.w}};
  }
  // Waits until `count` is at least `least`: other blocks must be running that increment it.
  METATASNET_DEVICE void await(const int* count, int least) const {
    int now;
    do {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
    } while (now < least);
  }

  // Returns a number that all threads of a warp have, for the registers that they share.
  METATASNET_DEVICE int uniform(int value) const { return __shfl_sync(~0u, value, 0); }
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

  // Stores them; register `r` of a lane is word lane % 4 of row lane / 4 of matrix `r`. Of compute capability 9.0 on.
  METATASNET_DEVICE void store_matrices(const std::uint32_t (&registers)[4], int row) const {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%4], {%0, %1, %2, %3};" ::"r"(registers[0]),
                 "r"(registers[1]), "r"(registers[2]), "r"(registers[3]), "r"(shared_address() + row)
                 : "memory");
  }
  // load_matrices, each matrix of 8 x 8 bfloat16 transposed: a lane has two neighbouring rows of one column.
  METATASNET_DEVICE void load_transposed(std::uint32_t (&registers)[4], int row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
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
  // d = c + a b.
  METATASNET_DEVICE void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                      const float (&c)[4]) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  }
  // d += a b, of shapes 16 x 8 and 8 x 8 in bfloat16: the first halves of those of 16.
  METATASNET_DEVICE void mma_bfloat16(float (&d)[4], const std::uint32_t (&a)[2], std::uint32_t b) const {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  }
  METATASNET_DEVICE void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

  // From here on for compute capability 9.0 alone.

  // A cluster of blocks reads and writes the shared memory of all of them: the number of this block in it, and a barrier of
  // all its threads.
  METATASNET_DEVICE int rank() const {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
  }
  METATASNET_DEVICE void sync_cluster() const {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
  }

  // An mbarrier of 8 bytes, `at` bytes after shared(). A phase ends when `arrivals` have arrived and the bytes that were
  // announced have been copied; the next one begins.
  METATASNET_DEVICE void init_barrier(int at, int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address() + at), "r"(arrivals) : "memory");
  }
  // Makes barriers known to TMA and, after the next sync_cluster(), to the cluster.
  METATASNET_DEVICE void publish_barriers() const { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
  METATASNET_DEVICE void arrive_expecting(int at, int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address() + at), "r"(bytes)
                 : "memory");
  }
  // Arrives at that barrier of a block of the cluster.
  METATASNET_DEVICE void arrive_at(int at, int rank) const {
    asm volatile(
        "{\n\t.reg .b32 remote;\n\tmapa.shared::cluster.u32 remote, %0, %1;\n\t"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t}" ::"r"(shared_address() + at),
        "r"(rank)
        : "memory");
  }
  // Waits until the phase with this parity, 0 for the first, has ended. The phase before the first, 1, always has.
  METATASNET_DEVICE void wait_phase(int at, int parity) const {
    std::uint32_t ended = 0;
    while (!ended) {
      asm volatile(
          "{\n\t.reg .pred ended;\n\tmbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, ended;\n\t}"
          : "=r"(ended)
          : "r"(shared_address() + at), "r"(parity)
          : "memory");
    }
  }

  // TMA: copies the box that begins at element (x, y, z), in the background, to `to` bytes after shared(), and announces
  // its bytes at the barrier `at`.
  METATASNET_DEVICE void copy_box(int to, const TensorMap& map, int at, int x, int y, int z) const {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
            shared_address() + to),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address() + at)
        : "memory");
  }
  // The same in every block of the cluster whose bit in `ranks` is set.
  METATASNET_DEVICE void copy_box_to(int to, const TensorMap& map, int at, int x, int y, int z,
                                     std::uint16_t ranks) const {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address() + to),
        "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address() + at), "h"(ranks)
        : "memory");
  }

  // Makes what this thread stored in shared memory known to wgmma, after the next barrier.
  METATASNET_DEVICE void publish_operands() const { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  // wgmma, by four warps together: d += a b^T, of 64 x 16 and 160 x 16, or 80 x 16, bfloat16 that begin `a` and `b` times
  // 16 bytes after shared(), in the background. A warp's part of d is 16 rows as fragments of mma. Before the first product, and where
  // values of d were touched, begin_products(); products of one commit are complete when wait_products() says so, and until
  // then neither d nor a and b may be touched.
  METATASNET_DEVICE void begin_products() const { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
#define METATASNET_FOUR(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
  METATASNET_DEVICE void multiply(float (&d)[10][4], int a, int b) const {
    asm volatile(
        "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, 1, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
        "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39}, "
        "%40, %41, add, 1, 1, 0, 0;\n\t}"
        : METATASNET_FOUR(0), METATASNET_FOUR(1), METATASNET_FOUR(2), METATASNET_FOUR(3), METATASNET_FOUR(4),
          METATASNET_FOUR(5), METATASNET_FOUR(6), METATASNET_FOUR(7), METATASNET_FOUR(8), METATASNET_FOUR(9)
        : "l"(descriptor(a)), "l"(descriptor(b)));
  }
  METATASNET_DEVICE void multiply(float (&d)[20][4], int a, int b) const {
    asm volatile(
        "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, 1, 0;\n\t"
        "wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
        "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "
        "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79}, "
        "%80, %81, add, 1, 1, 0, 0;\n\t}"
        : METATASNET_FOUR(0), METATASNET_FOUR(1), METATASNET_FOUR(2), METATASNET_FOUR(3), METATASNET_FOUR(4),
          METATASNET_FOUR(5), METATASNET_FOUR(6), METATASNET_FOUR(7), METATASNET_FOUR(8), METATASNET_FOUR(9),
          METATASNET_FOUR(10), METATASNET_FOUR(11), METATASNET_FOUR(12), METATASNET_FOUR(13), METATASNET_FOUR(14),
          METATASNET_FOUR(15), METATASNET_FOUR(16), METATASNET_FOUR(17), METATASNET_FOUR(18), METATASNET_FOUR(19)
        : "l"(descriptor(a)), "l"(descriptor(b)));
  }
#undef METATASNET_FOUR
  METATASNET_DEVICE void commit_products() const { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  // Waits until at most `pending` commits are unfinished.
  template <int pending>
  METATASNET_DEVICE void wait_products() const {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
  }
  // Keeps the compiler from moving accesses to d across this place.
  template <int fragments>
  METATASNET_DEVICE void pin(float (&d)[fragments][4]) const {
#pragma unroll
    for (int j = 0; j < fragments; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) asm volatile("" : "+f"(d[j][r])::"memory");
    }
  }

 private:
  METATASNET_DEVICE std::uint64_t descriptor(int at) const {
    constexpr std::uint64_t first = matrix_descriptor(0);
    const std::uint32_t low = static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(shared_address() / kDescriptorBytes + at);
    return first >> 32 << 32 | low;  // addresses in shared memory never carry
  }
  METATASNET_DEVICE int shared_address() const { return static_cast<int>(__cvta_generic_to_shared(shared())); }

  int thread_ = static_cast<int>(threadIdx.x);
};

}  // namespace metatasnet::cuda

#endif
