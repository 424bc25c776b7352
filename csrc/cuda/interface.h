// The host interface of a stage on a device, in plain C++ that needs no nvcc.
//
// Nothing is allocated: weights, workspaces, inputs and results are the caller's, every launch goes to the caller's
// stream, and nothing waits for the device, so that any allocator and CUDA graphs work.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace metatasnet {
namespace device {

enum class Precision { float32, tf32, bfloat16 };

// The instruction that multiplies frames: mma.sync, or wgmma, which needs bfloat16 and compute capability 9.0.
enum class Products { mma, wgmma };

struct Sizes {
  int instruments = 0;
  int softmax = 0;      // this many first instruments share a softmax; each of the others has a sigmoid
  int N = 0;            // latent channels
  int W = 0;            // samples per latent frame
  int B = 0;            // channels of the residual stream
  int H = 0;            // hidden channels
  int partial = 0;      // channels of the previous stage's masked latent
  int window = 0;       // taps of the longest filter
  int bank = 0;         // outputs of the encoder's filters
  int wide = 0;         // inputs of the decoder's filters
  int turn = 0;         // the decoder's filters are stored from this tap on; the taps before it come last
  std::vector<int> taps, inputs;  // of each of the decoder's filters, shorter ones first, their taps centred in the window
  int mels = 0;         // bottleneck inputs from the spectrogram; 0: the encoder has no spectrogram branch
  int n_fft = 0;        // samples of a spectrogram's frame; a power of two
  int hop = 0;
  bool biased = false;  // res_out and skip_out have biases
  std::vector<int> dilations;

  int blocks() const { return static_cast<int>(dilations.size()); }
  int bins() const { return n_fft / 2 + 1; }
  std::int64_t spectrogram_frames(std::int64_t samples) const { return mels ? samples / hop + 1 : 0; }
};

// Slopes of the PReLUs: prelu_1 to prelu_4, and prelu_1, prelu_2 of each block in turn.
struct Slopes {
  float input = 0, first = 0, skip = 0, output = 0;
  std::vector<float> blocks;
};

enum class Type { float32, bfloat16, float64 };

// A contiguous array on the device.
struct Array {
  const void* data = nullptr;
  std::vector<std::int64_t> shape;
  Type type = Type::float32;
};

// Frames by channels: row t of instrument i of an item begins at item * n + instrument * i + row * t elements, all at
// multiples of 16 bytes. If instruments share one, `instrument` is 0.
struct Frames {
  const void* data = nullptr;
  std::int64_t item = 0, instrument = 0, row = 0;
  int channels = 0;
};

// The place where a call computes: a device and one of its streams.
struct Place {
  int device = 0;
  std::uintptr_t stream = 0;
};

class Stage {
 public:
  virtual ~Stage() = default;

  virtual const Sizes& sizes() const = 0;
  virtual bool stores_bfloat16() const = 0;
  virtual int latent_ld() const = 0;  // channels of a latent's storage: N rounded up

  // Why the blocks of a masking network are separate launches for so many frames; empty: one persistent launch serves.
  virtual std::string separate_launches(int device, std::int64_t frames) const = 0;

  // Bytes of the workspace that a call needs.
  virtual std::int64_t encode_bytes(std::int64_t n, std::int64_t samples) const = 0;
  virtual std::int64_t mask_bytes(std::int64_t n, std::int64_t frames, bool own_inputs) const = 0;
  virtual std::int64_t decode_bytes(std::int64_t n, std::int64_t frames) const = 0;

  // (n, samples) float32 to the latent (n, samples / W, latent_ld).
  virtual void encode(Place place, std::int64_t n, std::int64_t samples, const float* signal, void* latent,
                      char* workspace) const = 0;
  // The masked latent (n, instruments, frames, latent_ld): `latent` times the masks of a network that reads `input`
  // (the latent, or one copy of it for each instrument) and, after the first stage, `partial`.
  virtual void mask(Place place, std::int64_t n, std::int64_t frames, const Frames& latent, const Frames& input,
                    const Frames& partial, void* masked, char* workspace) const = 0;
  // latent (n items) to the signal (n, frames * W), float32.
  virtual void decode(Place place, std::int64_t n, std::int64_t frames, const Frames& latent, float* signal,
                      char* workspace) const = 0;
};

using MakeStage = std::unique_ptr<Stage>(Precision precision, Products products, const Sizes& sizes, const Slopes& slopes,
                                         const std::map<std::string, Array>& weights);

}  // namespace device

// make_stage throws std::invalid_argument for sizes that the kernels do not cover, missing weights or wrong shapes,
// check for sizes. shared_bytes is the shared memory that the most demanding block of a stage asks for.
namespace cuda {
device::MakeStage make_stage;
// Return why the kernels cannot run on a device, in the words of the CUDA runtime; empty if they can.
std::string obstacle(int device);
}  // namespace cuda
namespace emulated {
device::MakeStage make_stage;
void check(const device::Sizes& sizes);
std::size_t shared_bytes(const device::Sizes& sizes);
void set_order(unsigned order);  // emulator/block.h
void set_multiprocessors(int count);  // that the emulated device has; 132 to begin with
int multiprocessors();
// out (frames, padded outputs) = data (frames, channels) times weights (outputs, channels) as the spectrogram's products are
// computed; channels are a multiple of 32.
void multiply_split(std::int64_t frames, int channels, int outputs, const float* data, const float* weights, float* out);

// A launch that was recorded instead of emulated: the kernel's mangled type, its grid, the threads of a block, how many
// blocks are meant to fit on a multiprocessor, how many are a cluster, the shared memory, and the arguments as the device
// would get them, with tensor maps as the emulator has them (wgmma_layout.h).
struct Recorded {
  std::string kernel;
  std::int64_t grid[3];
  int threads, blocks, cluster;
  std::int64_t shared_bytes;
  std::string arguments;
};
// While this is set, the launches of this thread are recorded here: nothing is computed, and no memory is touched.
void record_to(std::vector<Recorded>* launches);
bool record(Recorded launch);  // false: not recording
}  // namespace emulated

}  // namespace metatasnet
